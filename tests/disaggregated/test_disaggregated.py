"""Both sides of the bridge over gloo, with an engine of random tokens in vLLM's place."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from passk_fast.errors import ExitCode
from tests.ranks import RankError, RankPool

W = "tests.disaggregated.workers:"


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    """Two trainer ranks and two rollout ranks."""
    with RankPool(4) as pool:
        yield pool


def test_each_side_is_a_world_of_its_own(four: RankPool) -> None:
    got = four.run(W + "where", 2)
    assert [one["side"] for one in got] == ["trainer", "trainer", "rollout", "rollout"]
    assert [one["rank"] for one in got] == [(0, 0, 0), (1, 1, 1), (0, 0, 2), (1, 1, 3)]
    assert [one["world"] for one in got] == [(2, 2)] * 4
    assert [one["sum"] for one in got] == [1, 1, 5, 5]
    assert [one["everyone"] for one in got] == [[0, 1, 2, 3]] * 4


@pytest.mark.megatron
@pytest.mark.parametrize(
    ("parallel", "tensor"),
    [({"tensor": 2}, 2), ({"tensor": 2}, 1), ({"pipeline": 2}, 1), ({}, 2)],
    ids=["tp2-tp2", "tp2-dp2", "pp2-dp2", "dp2-tp2"],
)
def test_weights_and_samples_cross_the_bridge(
    four: RankPool, parallel: dict[str, int], tensor: int
) -> None:
    got = four.run(W + "serve_and_ask", parallel, tensor, 2)
    for trainer in got[:2]:
        (all_, stopped) = trainer["results"]
        assert all_ == (True, True, 0)
        assert stopped[:2] == (True, True)
        assert stopped[2] > 0
        assert trainer["stop"]  # one rollout rank had a signal: all trainers know
        assert trainer["data_size"] == 2 // tensor
    for rollout in got[2:]:
        assert rollout == {"code": ExitCode.PREEMPTED, "same": True, "opened": (2, 2)}


@pytest.mark.megatron
def test_what_a_rollout_rank_meets_is_raised_on_every_trainer_rank() -> None:
    with RankPool(3) as pool:
        got = pool.run(W + "serve_and_ask", {}, 1, 1, "too large")
    error = ("ConfigError", "vLLM could not start with rollout.kv_cache_gib = 1")
    assert got == [{"error": error}] * 3


@pytest.mark.megatron
def test_weights_that_differ_are_named_on_both_sides() -> None:
    with RankPool(3) as pool:
        got = pool.run(W + "serve_and_ask", {"tensor": 2}, 1, 1, "damaged")
    for one in got:
        kind, text = one["error"]
        assert kind == "DivergedError"
        assert "model.layers.1.self_attn.o_proj.weight" in text
        assert "on rank 2, from rank 0" in text


@pytest.mark.slow
def test_an_idle_rank_finds_a_host_that_falls_silent() -> None:
    """Rank 0 is frozen: its connections stay open, as those of a host that is unplugged."""
    with RankPool(2) as pool, pytest.raises(RankError) as caught:
        pool.run(W + "waits_for_a_frozen_rank", 1, 3, timeout_s=90.0)
    assert "has lost trainer rank 0: its host has not answered for 3 s" in str(caught.value)
    (seconds,) = re.findall(r"found after ([\d.]+) s", str(caught.value))
    assert 3 <= float(seconds) < 12  # ten time-outs are 30


def test_an_idle_rank_waits_for_a_trainer_that_works() -> None:
    with RankPool(2) as pool:
        assert pool.run(W + "waits_for_a_busy_rank", 1, 1) == [b"", b"done"]


@pytest.mark.parametrize(
    ("dying", "lost"),
    [
        (0, "LostRankError: Rollout rank 1 has lost trainer rank 0"),
        (1, "LostRankError: Trainer rank 0 has lost rollout rank 1"),
    ],
)
def test_a_rank_that_dies_is_named(dying: int, lost: str) -> None:
    with RankPool(2) as pool, pytest.raises(RankError) as caught:
        pool.run(W + "loses_a_rank", 1, dying, timeout_s=60.0)
    assert "process ended with exit code 7" in str(caught.value)
    assert lost in str(caught.value)
