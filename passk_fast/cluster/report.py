"""The preflight's verdict: what is wrong, a line each, and one table with a row for every host."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from passk_fast.argument_parser import Parser
from passk_fast.cluster.facts import Facts
from passk_fast.versions import SWITCH, any_version_wanted, untested


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the preflight; options of `passk-fast preflight` of the same names."""

    max_skew_s: float = 1.0
    """How far a host's clock may be from rank 0's: people compare logs and file times of hosts."""
    min_send_gb_s: float = 0.0
    """A host must send this much to its neighbour, all ranks together, in GB/s (10^9 bytes)."""
    min_share_of_median: float = 0.5
    """... and this share of what the median host sends."""
    min_write_mb_s: float = 20.0
    """The shared folder must take this much from every host writing at once, in MB/s."""
    min_memory_gib: float = 2.0
    """Available memory for each rank of a host."""
    min_shm_gib: float = 0.25
    """/dev/shm for each rank: NCCL and vLLM put buffers there."""
    min_gpu_free_share: float = 0.9
    """Free part of each GPU's memory: less means that something else runs on it."""
    min_open_files: int = 4096
    """Limit of open files (ulimit -n)."""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Limits]:
    """The options of `passk-fast preflight`, one for each bound of `Limits`."""
    parser = Parser(prog="passk-fast preflight", allow_abbrev=False)
    parser.add_argument("--storage", default="runs", help="folder that all hosts must share")
    parser.add_argument("--storage-mib", type=int, default=256, help="written by each host")
    parser.add_argument("--send-mib", type=int, default=0, help="message; 0: 512, on CPU 64")
    parser.add_argument("--timeout-s", type=int, default=120, help="deadline of a collective")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for field in dataclasses.fields(Limits):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    options = parser.parse_args(arguments)
    names = [field.name for field in dataclasses.fields(Limits)]
    return options, Limits(**{name: getattr(options, name) for name in names})


def by_node(facts: Sequence[Facts]) -> dict[int, list[Facts]]:
    """Ranks of each host."""
    nodes: dict[int, list[Facts]] = {}
    for fact in sorted(facts, key=lambda fact: fact.rank):
        nodes.setdefault(fact.node, []).append(fact)
    return dict(sorted(nodes.items()))


def send_gb_s(ranks: Sequence[Facts]) -> float | None:
    """What a host's ranks sent together, None where there is one host."""
    sent = [rank.measured["send_gb_s"] for rank in ranks if "send_gb_s" in rank.measured]
    return sum(sent) if sent else None


def problems(facts: Sequence[Facts], limits: Limits) -> list[str]:
    """One line for each thing that is wrong; empty when the cluster may train."""
    nodes = by_node(facts)
    found = _differences(facts) + _untested(nodes)
    found += _clocks(nodes, limits)
    found += _gpus(nodes, limits)
    found += _network(nodes, limits)
    found += _storage(facts, nodes, limits)
    for ranks in nodes.values():
        found += _host_limits(ranks, limits)
    return found


def _differences(facts: Sequence[Facts]) -> list[str]:
    """Versions and environment variables that are not the same everywhere."""
    found = []
    for what in ("versions", "environment"):
        for name in sorted({key for fact in facts for key in getattr(fact, what)}):
            values: dict[str, list[Facts]] = {}
            for fact in facts:
                values.setdefault(getattr(fact, what).get(name, "unset"), []).append(fact)
            if len(values) > 1:
                each = "; ".join(
                    f"{value} on {_who(who, facts)}" for value, who in sorted(values.items())
                )
                found.append(f"{name} differs: {each}.")
    return found


def _untested(nodes: dict[int, list[Facts]]) -> list[str]:
    """Versions outside the tested ranges, host by host; none where the switch allows them."""
    if any_version_wanted():
        return []
    return [
        f"{ranks[0].host} has versions that were not tested: {'; '.join(wrong)}; "
        f"{SWITCH}=1 goes on regardless."
        for ranks in nodes.values()
        if (wrong := untested(ranks[0].versions))
    ]


def _who(some: Sequence[Facts], everyone: Sequence[Facts]) -> str:
    """Hosts by name where all their ranks are meant, else ranks; four at most."""
    total = Counter(fact.node for fact in everyone)
    names = []
    for node, ranks in by_node(some).items():
        whole = len(ranks) == total[node]
        names.append(ranks[0].host if whole else f"rank {ranks[0].rank} of {ranks[0].host}")
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest


def _clocks(nodes: dict[int, list[Facts]], limits: Limits) -> list[str]:
    found = []
    for ranks in nodes.values():
        worst = max(ranks, key=lambda rank: abs(rank.measured.get("skew_s", 0.0)))
        skew = worst.measured.get("skew_s", 0.0)
        if abs(skew) > limits.max_skew_s:
            found.append(
                f"Clock of {worst.host} is {abs(skew):.3g} s {'ahead of' if skew > 0 else 'behind'}"
                f" rank 0's (bound {limits.max_skew_s:g} s): is its time service running?"
            )
    return found


def _gpus(nodes: dict[int, list[Facts]], limits: Limits) -> list[str]:
    found = []
    everyone = [rank for ranks in nodes.values() for rank in ranks]
    kinds = Counter(rank.gpu for rank in everyone)
    if len(kinds) > 1:
        each = "; ".join(
            f"{'no GPU' if kind == '-' else kind} on "
            f"{_who([rank for rank in everyone if rank.gpu == kind], everyone)}"
            for kind in sorted(kinds)
        )
        found.append(f"GPUs differ: {each}.")
    for ranks in nodes.values():
        gpus = ranks[0].num_gpus
        if 0 < gpus < len(ranks):
            found.append(f"{ranks[0].host} has {gpus} GPUs for {len(ranks)} ranks.")
        for rank in ranks:
            if rank.gpu_free_share < limits.min_gpu_free_share:
                found.append(
                    f"GPU {rank.local_rank} of {rank.host} has {rank.gpu_free_share:.0%} of its "
                    "memory free: something else runs on it."
                )
    return found


def _network(nodes: dict[int, list[Facts]], limits: Limits) -> list[str]:
    found = []
    sizes = {len(ranks) for ranks in nodes.values()}
    if len(sizes) > 1:
        found.append(
            "Hosts have different numbers of ranks: "
            + ", ".join(f"{ranks[0].host} {len(ranks)}" for ranks in nodes.values())
            + "; bandwidth was not measured."
        )
    sent = {node: send_gb_s(ranks) for node, ranks in nodes.items()}
    measured = [value for value in sent.values() if value is not None]
    order = list(nodes)
    for i, node in enumerate(order):
        value = sent[node]
        bound = max(
            limits.min_send_gb_s, limits.min_share_of_median * median(measured) if measured else 0.0
        )
        if value is not None and value < bound:
            after = nodes[order[(i + 1) % len(order)]][0].host
            found.append(
                f"{nodes[node][0].host} sends {value:.3g} GB/s to {after}, "
                f"less than {bound:.3g} GB/s."
            )
    return found


def _storage(facts: Sequence[Facts], nodes: dict[int, list[Facts]], limits: Limits) -> list[str]:
    found = []
    blind = [fact for fact in facts if not fact.measured.get("sees_rank_0", 1.0)]
    if blind:
        found.append(
            f"Storage is not shared: {_who(blind, facts)} cannot read what rank 0 "
            f"({facts[0].host}) wrote; output_dir must be one folder on all hosts."
        )
    for ranks in nodes.values():
        lead = ranks[0].measured
        rate = lead.get("write_mb_s")
        if rate == 0.0:
            found.append(f"{ranks[0].host} cannot write into the shared folder.")
        elif rate is not None and rate < limits.min_write_mb_s:
            found.append(
                f"{ranks[0].host} writes {rate:.3g} MB/s into the shared folder, less than "
                f"{limits.min_write_mb_s:g} MB/s."
            )
    return found


def _host_limits(ranks: Sequence[Facts], limits: Limits) -> list[str]:
    first, count = ranks[0], len(ranks)
    found = []
    if first.memory_gib < limits.min_memory_gib * count:
        found.append(
            f"{first.host} has {first.memory_gib:.1f} GiB of memory available for {count} ranks, "
            f"less than {limits.min_memory_gib:g} GiB each."
        )
    if first.shm_gib < limits.min_shm_gib * count:
        found.append(
            f"/dev/shm of {first.host} has {first.shm_gib:.2f} GiB free for {count} ranks, less "
            f"than {limits.min_shm_gib:g} GiB each (containers need --shm-size or --ipc=host)."
        )
    if first.open_files < limits.min_open_files:
        found.append(
            f"{first.host} allows {first.open_files} open files, fewer than "
            f"{limits.min_open_files} (ulimit -n)."
        )
    if first.locked_memory_limited:
        found.append(
            f"{first.host} has InfiniBand but limits locked memory: set ulimit -l unlimited."
        )
    return found


def table(facts: Sequence[Facts]) -> str:
    """One row for each host, and a line with what all ranks have in common."""
    heads = ["host", "ranks", "GPUs", "memory", "/dev/shm", "clock", "sends", "writes", "reads"]
    rows = [heads]
    for ranks in by_node(facts).values():
        first, sent = ranks[0], send_gb_s(ranks)
        skew, write = first.measured.get("skew_s"), first.measured.get("write_mb_s")
        sees = all(rank.measured.get("sees_rank_0", 0.0) for rank in ranks)
        rows.append(
            [
                first.host,
                f"{ranks[0].rank}-{ranks[-1].rank}" if len(ranks) > 1 else str(ranks[0].rank),
                "-" if first.gpu == "-" else f"{first.num_gpus} x {first.gpu}",
                f"{first.memory_gib:.1f} GiB",
                f"{first.shm_gib:.1f} GiB",
                "-" if skew is None else f"{skew * 1e3:+.3f} ms",
                "-" if sent is None else f"{sent:.2f} GB/s",
                "-" if write is None else f"{write:.0f} MB/s",
                "shared" if sees else "NOT SHARED",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)) for r in rows]
    same = ", ".join(
        f"{name} {value}"
        for name, value in facts[0].versions.items()
        if all(fact.versions.get(name) == value for fact in facts)
    )
    return "\n".join(line.rstrip() for line in [*lines, f"the same on all ranks: {same}"])
