"""`passk-fast preflight`: what ranks find out about a cluster together, before a run is tried.

torchrun ... -m passk_fast.cluster.check [--storage FOLDER] [--max-skew-s 1.0] ...

Every rank gathers its facts (passk_fast.cluster.facts); clocks, links and storage are measured
here; rank 0 prints one table and a line for each thing that is wrong (passk_fast.cluster.report).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from passk_fast.cluster.facts import Facts, collect
from passk_fast.cluster.report import by_node, parse, problems, table
from passk_fast.errors import ExitCode
from passk_fast.process import run_rank
from passk_fast.process_group import gather_json

_PING_PONGS = 20
_STALE_S = 15.0
"""How long a file of another host may take to be seen: network file systems cache folders."""


def clock_skew_s(now: Callable[[], float] = time.time) -> float:
    """Seconds that this rank's clock is ahead of rank 0's, from the fastest of some ping-pongs.

    The error is at most half of that round trip. A collective: rank 0 asks one rank after another.
    """
    rank, skew = dist.get_rank(), 0.0
    stamp = torch.zeros(1, dtype=torch.float64)
    for other in range(1, dist.get_world_size()):
        if rank == 0:
            best = (float("inf"), 0.0)
            for _ in range(_PING_PONGS):
                sent = now()
                dist.send(stamp, other)
                dist.recv(stamp, other)
                back = now()
                best = min(best, (back - sent, float(stamp) - (sent + back) / 2))
            dist.send(torch.tensor([best[1]], dtype=torch.float64), other)
        elif rank == other:
            for _ in range(_PING_PONGS):
                dist.recv(stamp, 0)
                stamp[0] = now()
                dist.send(stamp, 0)
            dist.recv(stamp, 0)
            skew = float(stamp)
    return skew


def send_gb_s(facts: list[Facts], device: torch.device, mib: int, repeats: int = 3) -> float | None:
    """GB/s (10^9 bytes) that this rank sends to the next host while it receives from the last one.

    Rank i of each host is paired with rank i of its neighbours, all at once, as gradients and
    weights travel. None with one host, or where hosts have different numbers of ranks. The best of
    `repeats`, after one that opens the connections.
    """
    nodes = list(by_node(facts).values())
    if len(nodes) == 1 or len({len(ranks) for ranks in nodes}) > 1:
        return None
    mine = facts[dist.get_rank()]
    place = next(i for i, ranks in enumerate(nodes) if ranks[0].node == mine.node)
    seat = [fact.rank for fact in nodes[place]].index(mine.rank)
    after = nodes[(place + 1) % len(nodes)][seat].rank
    before = nodes[place - 1][seat].rank
    out = torch.ones(mib << 20, dtype=torch.uint8, device=device)
    into = torch.empty_like(out)
    best = float("inf")
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        operations = [dist.P2POp(dist.isend, out, after), dist.P2POp(dist.irecv, into, before)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return out.numel() / best / 1e9


def storage(folder: Path, facts: list[Facts], mib: int) -> dict[str, float]:
    """Whether this rank reads what rank 0 wrote, and how fast its host writes. A collective.

    `sees_rank_0` is 1 or 0 on every rank, `write_mb_s` (10^6 bytes, with fsync, all hosts at once)
    is on the first rank of each host; 0 where the folder cannot be written.
    """
    rank = dist.get_rank()
    token = gather_json(secrets.token_hex(8) if rank == 0 else "")[0]
    probe = folder / f".preflight-{token}"
    data = hashlib.sha256(token.encode()).digest() * (mib * (1 << 20) // 32)
    result: dict[str, float] = {}
    if rank == 0:
        _write(probe / "rank_0", data[: 1 << 20])
    dist.barrier()
    result["sees_rank_0"] = float(_appears(probe / "rank_0", data[: 1 << 20]))
    dist.barrier()
    if by_node(facts)[facts[rank].node][0].rank == rank:
        seconds = _write(probe / f"rank_{rank}", data)
        result["write_mb_s"] = 0.0 if seconds is None else len(data) / seconds / 1e6
    dist.barrier()
    if facts[rank].local_rank == 0:
        shutil.rmtree(probe, ignore_errors=True)  # every host: the folder may not be shared
    return result


def _write(path: Path, data: bytes) -> float | None:
    """Seconds to write and fsync, None if it cannot be done."""
    start = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None
    return time.perf_counter() - start


def _appears(path: Path, data: bytes) -> bool:
    deadline = time.monotonic() + _STALE_S
    while time.monotonic() < deadline:
        try:
            if path.read_bytes() == data:
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def check(options: argparse.Namespace) -> list[Facts]:
    """Facts of all ranks with what was measured between them. A collective over all ranks."""
    from passk_fast.process_group import pick_device

    device = torch.device(pick_device(options.device))
    own = collect()
    facts = [Facts(**entry) for entry in gather_json(own.as_dict())]
    measured = {"skew_s": clock_skew_s()}
    # A rank without a GPU where others have one is a finding, not a reason to hang in NCCL.
    if not all(fact.gpu != "-" for fact in facts):
        device = torch.device("cpu")
    mib = options.send_mib or (512 if device.type == "cuda" else 64)
    sent = send_gb_s(facts, device, mib)
    if sent is not None:
        measured["send_gb_s"] = sent
    measured |= storage(Path(options.storage), facts, options.storage_mib)
    entries = gather_json(measured)
    return [
        dataclasses.replace(fact, measured=entry)
        for fact, entry in zip(facts, entries, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the checks on this rank and exit: 0, or BAD_CONFIG where something is wrong."""
    from passk_fast.process_group import pick_device, start_process_group

    options, limits = parse(sys.argv[1:] if arguments is None else arguments)

    def work() -> ExitCode:
        start_process_group(pick_device(options.device), options.timeout_s)
        facts = check(options)
        found = problems(facts, limits)
        if dist.get_rank() == 0:
            print(table(facts), flush=True)
            for line in found:
                print(f"wrong: {line}", file=sys.stderr, flush=True)
            if not found:
                print(f"{len(facts)} ranks on {len(by_node(facts))} hosts: nothing wrong.")
        dist.barrier()
        return ExitCode.BAD_CONFIG if found else ExitCode.DONE

    run_rank(work)


if __name__ == "__main__":
    main()
