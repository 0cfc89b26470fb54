"""Dynamic sampling: sizes of rounds, where a batch ends, how the informative share adapts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import (
    InformativeShare,
    RoundSampler,
    SampledBatch,
    batch_end,
    round_size,
    sample_batch,
)


def test_a_fresh_share_asks_for_what_is_wanted() -> None:
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
def test_a_batch_ends_at_the_last_group_wanted(informative: list[bool], wanted: int) -> None:
    end = batch_end(informative, wanted)
    assert sum(informative[:end]) == min(wanted, sum(informative))
    if end < len(informative):
        assert informative[end - 1]
        assert sum(informative) >= wanted


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_settles_near_the_truth(share: float) -> None:
    rng, seen = random.Random(1), InformativeShare()
    for _ in range(60):
        seen.observe(sum(rng.random() < share for _ in range(64)), 64)
    assert seen.expected() == pytest.approx(share, abs=0.08)


def sample_from(
    informative: list[bool], *, wanted: int, cap: int, share: InformativeShare
) -> SampledBatch:
    """Groups that stand for themselves as numbers: number i is informative as `informative[i]`."""
    order = iter(range(len(informative)))

    def collect(indices: list[int], first: int) -> tuple[list[Any], CollectStats]:
        assert first == indices[0]
        return indices, CollectStats(aborted=1)

    def advantages(groups: list[Any]) -> np.ndarray:
        return np.array([[float(informative[i]), 0.0] for i in groups])

    sampler = RoundSampler(
        take=lambda count: [next(order) for _ in range(count)],
        collect=collect,
        advantages=advantages,
    )
    return sample_batch(sampler, wanted=wanted, cap=cap, share=share)


def test_rounds_go_on_until_enough_are_informative() -> None:
    share = InformativeShare()
    informative = [i % 4 == 0 for i in range(100)]
    batch = sample_from(informative, wanted=8, cap=64, share=share)
    assert batch.informative_P[: batch.end].sum() == 8
    assert batch.end == 29
    assert batch.rounds == batch.stats.aborted > 1
    assert share.expected() == pytest.approx(0.25, abs=0.05)
    # the next step asks for enough at once
    assert sample_from(informative, wanted=8, cap=64, share=share).rounds == 1


def test_a_batch_has_the_advantages_of_all_its_rounds() -> None:
    informative = [i % 4 == 0 for i in range(100)]
    batch = sample_from(informative, wanted=8, cap=64, share=InformativeShare())
    assert batch.advantages_PN[:, 0].tolist() == [float(informative[i]) for i in batch.indices]


def test_the_cap_ends_a_task_without_signal() -> None:
    batch = sample_from([False] * 100, wanted=8, cap=20, share=InformativeShare())
    assert len(batch.groups) == batch.end == 20


@pytest.mark.parametrize("informative", [True, False])
def test_without_dynamic_sampling_there_is_one_round(informative: bool) -> None:
    batch = sample_from([informative] * 8, wanted=8, cap=8, share=InformativeShare())
    assert (batch.rounds, batch.end) == (1, 8)
