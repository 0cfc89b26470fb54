"""Refill: sizes of rounds, where a batch ends, and how the live share adapts."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.data.types import RolloutGroup
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import (
    InformativeShare,
    SampledBatch,
    batch_end,
    draw,
    round_size,
)


def test_a_fresh_share_draws_what_is_wanted() -> None:
    assert round_size(32, InformativeShare().expected(), room=128) == 32


def test_rounds_grow_as_the_share_falls_and_stop_at_the_cap() -> None:
    assert round_size(8, 0.25, room=100) == 32
    assert round_size(8, 0.25, room=20) == 20
    assert round_size(3, 0.4, room=100, multiple=4) == 8


def test_a_task_without_signal_keeps_the_round_finite() -> None:
    share = InformativeShare()
    share.observe(0, 64)
    assert 0 < share.expected() < 0.05


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
def test_a_batch_ends_at_the_last_wanted_live_group(live: list[bool], wanted: int) -> None:
    end = batch_end(live, wanted)
    assert sum(live[:end]) == min(wanted, sum(live))
    if end < len(live):
        assert live[end - 1]
        assert sum(live) >= wanted


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_settles_near_the_truth(share: float) -> None:
    rng, seen = random.Random(1), InformativeShare()
    for _ in range(60):
        seen.observe(sum(rng.random() < share for _ in range(64)), 64)
    assert seen.expected() == pytest.approx(share, abs=0.08)


def draw_from(live: list[bool], *, wanted: int, cap: int, share: InformativeShare) -> SampledBatch:
    """Groups stand for themselves as numbers; number i is live where `live[i]`."""
    order = iter(range(len(live)))

    def collect(indices: list[int], first: int) -> tuple[list[RolloutGroup], CollectStats]:
        assert first == indices[0]
        return indices, CollectStats(aborted=1)  # type: ignore[return-value]

    return draw(
        lambda count: [next(order) for _ in range(count)],
        collect,
        lambda groups: np.array([live[i] for i in groups]),  # type: ignore[index]
        wanted=wanted,
        cap=cap,
        share=share,
    )


def test_rounds_go_on_until_enough_are_live() -> None:
    share = InformativeShare()
    live = [i % 4 == 0 for i in range(100)]
    drawn = draw_from(live, wanted=8, cap=64, share=share)
    assert sum(live[i] for i in drawn.indices[: drawn.end]) == 8
    assert drawn.end == 29
    assert drawn.rounds == drawn.stats.aborted > 1
    assert share.expected() == pytest.approx(0.25, abs=0.05)
    # the next step asks for enough at once
    assert draw_from(live, wanted=8, cap=64, share=share).rounds == 1


def test_the_cap_ends_a_task_without_signal() -> None:
    drawn = draw_from([False] * 100, wanted=8, cap=20, share=InformativeShare())
    assert len(drawn.groups) == drawn.end == 20


def test_without_refill_there_is_one_round() -> None:
    drawn = draw_from([False] * 8, wanted=8, cap=8, share=InformativeShare())
    assert (drawn.rounds, drawn.end) == (1, 8)
    drawn = draw_from([True] * 8, wanted=8, cap=8, share=InformativeShare())
    assert (drawn.rounds, drawn.end) == (1, 8)
