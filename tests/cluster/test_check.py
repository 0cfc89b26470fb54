"""Clocks, links and storage as ranks measure them together, over gloo on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from passk_fast.cluster.check import check, clock_skew_s, send_gb_s, storage
from passk_fast.cluster.facts import Facts
from passk_fast.cluster.report import Limits, parse, problems
from passk_fast.process_group import gather_json
from tests.ranks import RankPool

AHEAD_S = (0.0, 5.0, -3.0)


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(3) as ranks:
        yield ranks


def facts_of(world_size: int, a_host: int) -> list[Facts]:
    """Hosts of `a_host` ranks."""
    return [
        Facts(
            rank=rank,
            local_rank=rank % a_host,
            node=rank // a_host,
            host=f"host{rank // a_host}",
            versions={},
            environment={},
        )
        for rank in range(world_size)
    ]


def gathered(sizes: list[int]) -> Any:
    """On a rank: texts of different lengths, some not ASCII."""
    return gather_json({"rank": dist.get_rank(), "text": "ä" * sizes[dist.get_rank()]})


def skew() -> float:
    """On a rank: its clock against rank 0's, where clocks are wrong by AHEAD_S."""
    offset = AHEAD_S[dist.get_rank()]
    return clock_skew_s(lambda: time.time() + offset)


def sent(a_host: int) -> float | None:
    """On a rank."""
    return send_gb_s(facts_of(dist.get_world_size(), a_host), torch.device("cpu"), mib=1)


def stored(folders: list[str]) -> dict[str, float]:
    """On a rank, whose folder may be another than the others'."""
    import passk_fast.cluster.check as check

    check._STALE_S = 0.5
    return storage(Path(folders[dist.get_rank()]), facts_of(dist.get_world_size(), 1), mib=1)


def checked(folder: str) -> list[dict[str, Any]]:
    """On a rank: what the whole check found."""
    options, _ = parse(["--storage", folder, "--storage-mib", "1", "--device", "cpu"])
    return [fact.as_dict() for fact in check(options)]


def test_gather_json(pool: RankPool) -> None:
    wanted = [{"rank": rank, "text": "ä" * size} for rank, size in enumerate((3, 0, 500))]
    assert pool.run(f"{__name__}:gathered", [3, 0, 500]) == [wanted] * 3


def test_skew_is_what_the_clock_is_wrong_by(pool: RankPool) -> None:
    # Half of the fastest of 20 round trips bounds the error; a busy machine is slow, not wrong.
    assert pool.run(f"{__name__}:skew") == pytest.approx(AHEAD_S, abs=0.5)


def test_links(pool: RankPool) -> None:
    assert all(rate > 0.001 for rate in pool.run(f"{__name__}:sent", 1))
    assert pool.run(f"{__name__}:sent", 3) == [None] * 3  # one host
    assert pool.run(f"{__name__}:sent", 2) == [None] * 3  # hosts of two and of one


def test_storage(pool: RankPool, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    for result in pool.run(f"{__name__}:stored", [shared] * 3):
        assert result["sees_rank_0"] == 1.0
        assert result["write_mb_s"] > 0.0
    separate = [shared, str(tmp_path / "other"), shared]
    seen = [result["sees_rank_0"] for result in pool.run(f"{__name__}:stored", separate)]
    assert seen == [1.0, 0.0, 1.0]
    (tmp_path / "file").write_text("")
    nowhere = [shared, shared, str(tmp_path / "file" / "x")]
    assert pool.run(f"{__name__}:stored", nowhere)[2] == {"sees_rank_0": 0.0, "write_mb_s": 0.0}
    assert [list(Path(folder).iterdir()) for folder in separate[:2]] == [[], []]


def test_every_rank_gets_the_same_facts_of_all_ranks(pool: RankPool, tmp_path: Path) -> None:
    found = pool.run(f"{__name__}:checked", str(tmp_path))
    assert found[0] == found[1] == found[2]
    facts = [Facts(**entry) for entry in found[0]]
    assert [fact.rank for fact in facts] == [0, 1, 2]
    assert all({"skew_s", "sees_rank_0"} <= set(fact.measured) for fact in facts)
    assert "write_mb_s" in facts[0].measured
    assert not any("send_gb_s" in fact.measured for fact in facts), "one host sends to nobody"
    lenient = Limits(min_write_mb_s=0.0, min_memory_gib=0.0, min_shm_gib=0.0, min_open_files=1)
    assert problems(facts, lenient) == []
    assert len(problems(facts, replace(lenient, min_memory_gib=1e9))) == 1


@pytest.mark.parametrize(
    ("limit", "code", "ends_with"),
    [("0", 0, "1 ranks on 1 hosts: nothing wrong."), ("1e9", 2, "GiB each.")],
)
def test_the_command_says_by_its_code_whether_something_is_wrong(
    tmp_path: Path, limit: str, code: int, ends_with: str
) -> None:
    lenient = "--min-write-mb-s 0 --min-shm-gib 0 --min-open-files 1 --storage-mib 1".split()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "passk_fast.cluster.check", "--device", "cpu"),
            *("--storage", str(tmp_path / "shared"), "--min-memory-gib", limit, *lenient),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    lines = (done.stdout if code == 0 else done.stderr).strip().splitlines()
    assert lines[-1].endswith(ends_with)
    assert "the same on all ranks: python" in done.stdout
