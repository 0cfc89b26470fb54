"""The rank pool that other tests stand on."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankError, RankPool

_STATE: dict[str, int] = {}


def add_ranks(start: int) -> int:
    total = torch.tensor([dist.get_rank() + start])
    dist.all_reduce(total)
    return int(total)


def count_calls() -> int:
    _STATE["calls"] = _STATE.get("calls", 0) + 1
    return _STATE["calls"]


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank is unwell")
    dist.barrier()


def die_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os._exit(7)


def sleep_long() -> None:
    time.sleep(60)


def test_pool_keeps_state_and_survives_failures() -> None:
    with RankPool(2) as pool:
        assert pool.run("tests.test_ranks:add_ranks", 10) == [21, 21]
        assert pool.run("tests.test_ranks:count_calls") == [1, 1]
        assert pool.run("tests.test_ranks:count_calls") == [2, 2]
        with pytest.raises(RankError, match=r"(?s)rank 1:.*the second rank is unwell"):
            pool.run("tests.test_ranks:fail_on_rank_one")
        with pytest.raises(RankError, match="rank 1:\nprocess ended with exit code 7"):
            pool.run("tests.test_ranks:die_on_rank_one")
        assert pool.run("tests.test_ranks:count_calls") == [1, 1]
        with pytest.raises(TimeoutError, match=r"gave no answer in 0\.5 s"):
            pool.run("tests.test_ranks:sleep_long", timeout_s=0.5)
