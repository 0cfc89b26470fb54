"""The gap between the sampler's and the trainer's log-probs: its statistics, over meshes too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from passk_fast.actor.logprob_gap import NUM_BINS, RESOLUTION, LogprobGap, measure_gap
from passk_fast.data import packing
from passk_fast.data.types import PackedBatch
from tests.actor.workers import make_sequences
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron
W = "tests.actor.gap_workers"


def packed(count: int = 24) -> PackedBatch:
    """Random sequences in one row, with padding."""
    sequences = make_sequences(count)
    return packing.pack(sequences, range(len(sequences)), multiple=64, pad_id=0)


def found(batch: PackedBatch, logp_T: torch.Tensor) -> LogprobGap:
    gap = LogprobGap.of(measure_gap(logp_T, batch, batch.mask_T))
    assert gap is not None
    return gap


def exact(values: np.ndarray, share: float) -> float:
    """The smallest value that at least this share does not pass."""
    return float(np.sort(values)[max(1, math.ceil(share * len(values))) - 1])


def check(gap: LogprobGap, values: np.ndarray) -> None:
    """Against every token's gap: quantiles are never too small, and 1.1 % too large at most."""
    assert int(gap.counts.sum()) == len(values)
    assert gap.mean == pytest.approx(values.mean(), rel=1e-6)
    assert gap.largest == pytest.approx(values.max(), rel=1e-6)
    for share in (0.001, 0.5, 0.9, 0.99, 0.999, 1.0):
        want = exact(values, share)
        assert want * (1 - 1e-6) <= gap.quantile(share) <= want * (1 + RESOLUTION + 1e-6)


def test_the_resolution_is_as_stated() -> None:
    assert 0.0108 < RESOLUTION < 0.011
    batch = packed()
    spread_T = 2.0 ** (29 * torch.rand(len(batch.tokens_T), dtype=torch.float64) - 23)
    gap = found(batch, batch.rollout_logprobs_T.double() - spread_T)
    check(gap, spread_T[batch.mask_T].numpy())
    beyond = found(batch, batch.rollout_logprobs_T.double() - 100 * (1 + spread_T))
    assert beyond.quantile(0.5) == beyond.largest  # what is past the last bin is not told apart


def test_what_is_masked_does_not_count_and_what_is_not_a_number_is_infinite() -> None:
    batch = packed()
    logp = batch.rollout_logprobs_T.clone()
    logp[~batch.mask_T] = math.nan
    gap = found(batch, logp)
    assert (gap.mean, gap.largest) == (0.0, 0.0)
    assert gap.counts[0] == int(batch.mask_T.sum()) == gap.counts.sum()
    t = int(batch.mask_T.nonzero()[5])
    logp[t] = math.nan
    gap = found(batch, logp)
    assert gap.mean == gap.largest == gap.quantile(1.0) == math.inf
    assert gap.quantile(0.5) == 2.0**-24
    assert (gap.worst.sequence, gap.worst.position, gap.worst.token) == (
        int(batch.sequence_index_T[t]),
        int(batch.positions_T[t]) + 1,
        int(batch.targets_T[t]),
    )


def test_no_token_has_no_gap() -> None:
    batch = packed()
    nothing = torch.zeros_like(batch.mask_T)
    assert LogprobGap.of(measure_gap(batch.rollout_logprobs_T, batch, nothing)) is None
    assert LogprobGap.of({"tokens": torch.ones(())}) is None
    assert LogprobGap.merge([None, None]) is None


def test_parts_are_merged_as_if_they_were_one() -> None:
    batch = packed()
    logp = batch.rollout_logprobs_T - torch.rand(len(batch.tokens_T))
    halves = [batch.mask_T.clone(), batch.mask_T.clone()]
    middle = len(batch.tokens_T) // 3
    halves[0][middle:], halves[1][:middle] = False, False
    parts = [LogprobGap.of(measure_gap(logp, batch, half)) for half in halves]
    whole, merged = found(batch, logp), LogprobGap.merge([None, *parts])
    assert merged is not None
    assert merged.worst == whole.worst
    assert (merged.counts == whole.counts).all()
    assert merged.total == pytest.approx(whole.total)
    assert whole.behind(7).worst.sequence == whole.worst.sequence + 7
    assert whole.counts.shape == (NUM_BINS,)


@pytest.fixture(scope="module")
def alone(one_rank: RankPool, folders: dict[str, str]) -> dict[bool, Any]:
    """One rank, one micro-batch; by whether the log-probs before the update are known."""
    return {
        old: one_rank.run(f"{W}:logprob_gap", folders["qwen3"], {}, 4096, False, old)[0]
        for old in (False, True)
    }


@pytest.mark.parametrize("old", [False, True])
def test_a_policy_step_reports_the_gap_of_every_token(alone: dict[bool, Any], old: bool) -> None:
    check(alone[old]["gap"], alone[old]["tokens"])
    assert alone[True]["gap"].mean != pytest.approx(alone[False]["gap"].mean, rel=1e-2)


@pytest.mark.parametrize(
    ("mesh", "share", "old"),
    [
        pytest.param({}, False, False, id="dp2"),
        pytest.param({}, True, True, id="dp2-shared-old"),
        pytest.param({"tensor": 2}, False, True, id="tp2-old"),
        pytest.param({"pipeline": 2}, False, False, id="pp2"),
        pytest.param({"context": 2}, True, False, id="cp2-shared"),
    ],
)
def test_the_gap_is_over_all_ranks_tokens(
    two_ranks: RankPool,
    folders: dict[str, str],
    alone: dict[bool, Any],
    mesh: dict[str, Any],
    share: bool,
    old: bool,
) -> None:
    ranks = two_ranks.run(f"{W}:logprob_gap", folders["qwen3"], mesh, 120, share, old)
    want = alone[old]
    for rank in ranks:  # all ranks decide alike
        gap = rank["gap"]
        check(gap, want["tokens"])
        assert (gap.counts == ranks[0]["gap"].counts).all()
        assert gap.total == ranks[0]["gap"].total
        assert (gap.worst.sequence, gap.worst.position) == (
            want["gap"].worst.sequence,
            want["gap"].worst.position,
        )
