"""How far the trainer's log-probs are from the sampler's: statistics over all tokens of a step.

Measured with the log-probs of the weights that sampled, which training computes anyway: those of
its own forward pass, or with several minibatches those from before the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from passk_fast.data.types import PackedBatch

_BINS_PER_OCTAVE = 64
_LOWEST, _HIGHEST = -24, 6
"""Powers of two, in nats, that the bins reach from and to."""
NUM_BINS = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE + 2
"""Below 2^-24; 64 equal parts, in the logarithm, of each octave; from 2^6 up."""
GAP_PARTS = frozenset({"gap_total", "gap_counts", "gap_worst"})
"""What `measure_gap` puts among a micro-batch's metrics."""
RESOLUTION = 2.0 ** (1 / _BINS_PER_OCTAVE) - 1
"""A quantile is at most this share (1.1 %) above the true one, and never below it; between 2^-24
and 64 nats."""


@dataclass(frozen=True, kw_only=True)
class WorstToken:
    """Where the sampling and the training log-prob of one step differ most."""

    gap: float
    sequence: int
    position: int
    token: int
    rollout_logprob: float
    trainer_logprob: float


@dataclass(frozen=True, kw_only=True)
class LogprobGap:
    """|log-prob of the trainer - log-prob of the sampler| over the trained tokens of a step, nats.

    A gap that is not a number counts as infinite.
    """

    total: float
    """The sum over tokens."""
    counts: Int64[np.ndarray, " bins"]
    """Tokens by gap, in `NUM_BINS` bins."""
    worst: WorstToken

    @classmethod
    def of(cls, metrics: Mapping[str, Tensor]) -> LogprobGap | None:
        """Of one micro-batch with what `measure_gap` says; None where it says nothing, or saw no
        token."""
        if "gap_worst" not in metrics:
            return None
        row = metrics["gap_worst"].tolist()
        token = WorstToken(
            gap=row[0],
            sequence=int(row[1]),
            position=int(row[2]),
            token=int(row[3]),
            rollout_logprob=row[4],
            trainer_logprob=row[5],
        )
        if token.gap < 0:
            return None
        counts = metrics["gap_counts"].cpu().numpy()
        return cls(total=float(metrics["gap_total"]), counts=counts, worst=token)

    @classmethod
    def merge(cls, parts: SequenceOf[LogprobGap | None]) -> LogprobGap | None:
        """Of micro-batches, ranks or minibatches together; None where none has a token."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return cls(
            total=sum(part.total for part in known),
            counts=np.sum([part.counts for part in known], axis=0),
            worst=max((part.worst for part in known), key=lambda worst: worst.gap),
        )

    def as_json(self) -> dict[str, object]:
        """For another rank; `from_json` reads it."""
        counts = self.counts.tolist()
        return {"total": float(self.total), "counts": counts, "worst": asdict(self.worst)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> LogprobGap:
        """What `as_json` gave on another rank."""
        counts = np.array(told["counts"], dtype=np.int64)
        return cls(total=told["total"], counts=counts, worst=WorstToken(**told["worst"]))

    def behind(self, sequences: int) -> LogprobGap:
        """As part of a step in which so many other sequences come before these."""
        worst = replace(self.worst, sequence=self.worst.sequence + sequences)
        return replace(self, worst=worst)

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return self.total / int(self.counts.sum())

    @property
    def largest(self) -> float:
        """Of the worst token."""
        return self.worst.gap

    def quantile(self, share: float) -> float:
        """The smallest gap that at least this share of the tokens does not pass, to `RESOLUTION`.

        `share` in (0, 1]. All ranks' tokens count alike.
        """
        cumulative = np.cumsum(self.counts)
        rank = max(1, math.ceil(share * int(cumulative[-1])))
        index = int(np.searchsorted(cumulative, rank))
        above = 2.0 ** (_LOWEST + index / _BINS_PER_OCTAVE) if index < NUM_BINS - 1 else math.inf
        return min(above, self.largest)


def measure_gap(logp_T: Tensor, batch: PackedBatch, mask_T: Tensor) -> dict[str, Tensor]:
    """The gap over the tokens of `mask_T` of a micro-batch, where `logp_T` [T] are the log-probs
    of its forward pass.

    "gap_total" float64; "gap_counts" int64 [NUM_BINS]; "gap_worst" float64 [6]: gap (-1 without a
    token), sequence index, position in the sequence, token id, rollout and trainer log-prob. All on
    the batch's device, which is not waited for.
    """
    trainer_T = logp_T if batch.old_logprobs_T is None else batch.old_logprobs_T
    gap_T = (trainer_T.double() - batch.rollout_logprobs_T.double()).abs()
    gap_T = torch.where(torch.isnan(gap_T), torch.inf, gap_T)
    place_T = ((gap_T.log2() - _LOWEST) * _BINS_PER_OCTAVE).floor() + 1
    place_T = place_T.clamp(0, NUM_BINS - 1).long()
    counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=gap_T.device)
    counts.index_add_(0, place_T, mask_T.long())
    ranked_T = gap_T.masked_fill(~mask_T, -1.0)
    t = ranked_T.argmax().view(1)
    columns = (
        ranked_T,
        batch.sequence_index_T,
        batch.positions_T + 1,
        batch.targets_T,
        batch.rollout_logprobs_T,
        trainer_T,
    )
    worst = torch.cat([column.index_select(0, t).double() for column in columns])
    total = gap_T.masked_fill(~mask_T, 0.0).sum()
    return {"gap_total": total, "gap_counts": counts, "gap_worst": worst}
