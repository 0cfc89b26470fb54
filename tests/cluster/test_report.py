"""The preflight's verdict over made-up hosts: each fault gives its line, and only it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from passk_fast.cluster.facts import Facts, collect
from passk_fast.cluster.report import Limits, parse, problems, table


def fact(rank: int, **changes: Any) -> Facts:
    """A good rank: two a host."""
    measured = {"skew_s": 0.0002, "send_gb_s": 20.0, "sees_rank_0": 1.0, "write_mb_s": 900.0}
    base: dict[str, Any] = {
        "rank": rank,
        "local_rank": rank % 2,
        "node": rank // 2,
        "host": f"host{rank // 2}",
        "versions": {"torch": "2.13.0", "commit": "abc"},
        "environment": {"NCCL_ALGO": "Ring"},
        "num_gpus": 2,
        "gpu": "NVIDIA H100",
        "memory_gib": 100.0,
        "shm_gib": 50.0,
        "open_files": 65536,
        "measured": measured | changes.pop("measured", {}),
    }
    return Facts(**(base | changes))


def cluster(wrong: dict[int, dict[str, Any]] | None = None) -> list[Facts]:
    """Three hosts of two ranks; `wrong` changes some ranks."""
    return [fact(rank, **(wrong or {}).get(rank, {})) for rank in range(6)]


def test_a_good_cluster_has_nothing_wrong() -> None:
    assert problems(cluster(), Limits()) == []


def both(**changes: Any) -> dict[int, dict[str, Any]]:
    """The same changes on both ranks of host1."""
    return {rank: dict(changes) for rank in (2, 3)}


WRONG: dict[str, dict[int, dict[str, Any]]] = {
    "torch differs: 2.12.0 on host1; 2.13.0 on host0, host2.": both(
        versions={"torch": "2.12.0", "commit": "abc"}
    ),
    "commit differs: abc on host0, rank 2 of host1, host2; fff on rank 3 of host1.": {
        3: {"versions": {"torch": "2.13.0", "commit": "fff"}}
    },
    "NCCL_ALGO differs: Ring on host0, host2; unset on host1.": both(environment={}),
    "Clock of host1 is 2.5 s behind rank 0's (bound 1 s)": {2: {"measured": {"skew_s": -2.5}}},
    "Clock of host2 is 1.5 s ahead of rank 0's": {5: {"measured": {"skew_s": 1.5}}},
    "GPUs differ: no GPU on rank 3 of host1; NVIDIA H100 on host0, rank 2 of host1, host2.": {
        3: {"gpu": "-"}
    },
    "host1 has 1 GPUs for 2 ranks.": both(num_gpus=1),
    "GPU 1 of host1 has 40% of its memory free": {3: {"gpu_free_share": 0.4}},
    "host1 sends 12 GB/s to host2, less than 20 GB/s.": both(measured={"send_gb_s": 6.0}),
    "Storage is not shared: host1 cannot read what rank 0 (host0) wrote": both(
        measured={"sees_rank_0": 0.0}
    ),
    "host1 writes 3 MB/s into the shared folder, less than 20 MB/s.": {
        2: {"measured": {"write_mb_s": 3.0}}
    },
    "host1 cannot write into the shared folder.": {2: {"measured": {"write_mb_s": 0.0}}},
    "host1 has 3.0 GiB of memory available for 2 ranks": both(memory_gib=3.0),
    "/dev/shm of host1 has 0.06 GiB free for 2 ranks": both(shm_gib=0.0625),
    "host1 allows 1024 open files, fewer than 4096": both(open_files=1024),
    "host1 has InfiniBand but limits locked memory": both(locked_memory_limited=True),
}


@pytest.mark.parametrize("message", WRONG)
def test_each_fault_gives_its_line(message: str) -> None:
    found = problems(cluster(WRONG[message]), Limits())
    assert len(found) == 1, found
    assert found[0].startswith(message)


def test_untested_versions_are_wrong_on_each_host_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = cluster({rank: {"versions": {"torch": "2.14.1", "commit": "abc"}} for rank in range(6)})
    found = problems(facts, Limits())
    assert [line.split()[0] for line in found] == ["host0", "host1", "host2"]
    assert "torch 2.14.1 (tested: 2.11 to 2.13)" in found[0]
    monkeypatch.setenv("PASSK_FAST_ANY_VERSION", "1")
    assert problems(facts, Limits()) == []


def test_hosts_of_different_sizes() -> None:
    facts = cluster()[:5]
    for one in facts:
        del one.measured["send_gb_s"]
    assert problems(facts, Limits()) == [
        "Hosts have different numbers of ranks: host0 2, host1 2, host2 1; bandwidth was not "
        "measured."
    ]


@pytest.mark.parametrize(
    ("limits", "start"),
    [
        (Limits(min_send_gb_s=50.0), "host0 sends 40 GB/s to host1, less than 50 GB/s."),
        (Limits(max_skew_s=1e-4), "Clock of host0"),
        (Limits(min_memory_gib=60.0), "host0 has 100.0 GiB"),
    ],
)
def test_bounds_are_the_users(limits: Limits, start: str) -> None:
    found = problems(cluster(), limits)
    assert len(found) == 3
    assert found[0].startswith(start)


def test_the_table_has_a_row_for_each_host_and_what_is_common() -> None:
    facts = cluster({2: {"versions": {"torch": "2.13.0", "commit": "fff"}}})
    lines = table(facts).splitlines()
    assert [line.split()[0] for line in lines] == ["host", "host0", "host1", "host2", "the"]
    assert lines[1].split() == (
        "host0 0-1 2 x NVIDIA H100 100.0 GiB 50.0 GiB +0.200 ms 40.00 GB/s 900 MB/s shared".split()
    )
    assert lines[-1] == "the same on all ranks: torch 2.13.0"


def test_one_host_has_no_links() -> None:
    facts = [fact(rank) for rank in range(2)]
    for one in facts:
        del one.measured["send_gb_s"]
    assert problems(facts, Limits(min_send_gb_s=1e9)) == []
    assert " -  " in table(facts)


def test_own_facts_survive_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setenv("NCCL_IB_HCA", "mlx5")  # a host's own: not compared
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    own = collect()
    assert Facts(**json.loads(json.dumps(own.as_dict()))) == own
    assert "NCCL_IB_HCA" not in own.environment
    assert own.environment["NCCL_ALGO"] == "Tree"
    assert own.memory_gib > 0
    assert own.versions["torch"].startswith("2.")


def test_limits_are_the_options_of_the_command() -> None:
    changed: dict[str, Any] = {
        field.name: field.default + 1 for field in dataclasses.fields(Limits)
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    assert parse(arguments)[1] == Limits(**changed)
    assert parse([])[1] == Limits()
