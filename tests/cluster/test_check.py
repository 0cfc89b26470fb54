"""Clocks, links and storage as ranks measure them together, over gloo on one machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from passk_fast.cluster.check import clock_skew_s, gather_json, send_gb_s, storage
from passk_fast.cluster.facts import Facts
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
    apart = [shared, str(tmp_path / "other"), shared]
    seen = [result["sees_rank_0"] for result in pool.run(f"{__name__}:stored", apart)]
    assert seen == [1.0, 0.0, 1.0]
    (tmp_path / "file").write_text("")
    nowhere = [shared, shared, str(tmp_path / "file" / "x")]
    assert pool.run(f"{__name__}:stored", nowhere)[2] == {"sees_rank_0": 0.0, "write_mb_s": 0.0}
    assert [list(Path(folder).iterdir()) for folder in apart[:2]] == [[], []]
