"""Options of the token loss, shared by every kernel and by the references. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

MAX_METRICS = frozenset({"logprob_gap_max"})
"""Metrics that combine over ranks and micro-batches by MAX; every other number by SUM."""


@dataclass(frozen=True)
class PolicyLoss:
    """Options of the token loss. Example: PolicyLoss(clip_high=0.28) is DAPO's clip-higher."""

    clip_low: float = 0.2
    """A negative advantage stops pushing once the ratio is below 1 - clip_low; in [0, 1)."""
    clip_high: float = 0.2
    """A positive advantage stops pushing once the ratio is above 1 + clip_high."""
    dual_clip: float = 0.0
    """A token's policy loss with a negative advantage is at most dual_clip * |A|; 0 is off."""
    tis_clip: float = 0.0
    """Cap of the truncated importance weight trainer / sampler (TIS); 0 is off."""
    kl_coef: float = 0.0
    """Weight of the KL term to the reference policy; 0 is off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators. As a loss term only k2 has the gradient of the reverse KL in
    expectation over the policy's own samples: k1's gradient is zero, k3's is that of
    KL(reference || policy)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; 0 is off."""
    objective: Literal["clip", "reinforce", "cispo"] = "clip"
    """clip: PPO's clipped ratio. reinforce: the ratio without any clip, which is REINFORCE where
    the ratio is 1. cispo (arXiv 2506.13585): -clip(r, 1 - low, 1 + high) A logp, the clipped ratio
    without gradient, so that every token keeps one."""
    ratio: Literal["token", "sequence"] = "token"
    """sequence (GSPO, arXiv 2507.18071): every token of a sequence carries the geometric mean of
    its token ratios; needs `sequence_index`. The sum still runs over tokens: divide the advantages
    by the sequence's length for the paper's mean over sequences."""
    importance_min: float = 0.0
    """A token whose trainer / sampler ratio is below this adds no policy term; 0 is off."""
    importance_max: float = 0.0
    """A token whose trainer / sampler ratio is above this adds no policy term; 0 is off."""

    def __post_init__(self) -> None:
        names = ("clip_low", "clip_high", "tis_clip", "importance_min", "importance_max")
        for name in (*names, "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"PolicyLoss.{name} must be finite and 0 or more, got {value}.")
        if self.clip_low >= 1:
            raise ValueError(f"PolicyLoss.clip_low must be below 1, got {self.clip_low}.")
        if self.dual_clip != 0 and not self.dual_clip > 1:
            raise ValueError(f"PolicyLoss.dual_clip must be 0 or above 1, got {self.dual_clip}.")
        if self.importance_max and self.importance_max <= self.importance_min:
            raise ValueError(
                f"PolicyLoss.importance_max must be 0 or above importance_min = "
                f"{self.importance_min}, got {self.importance_max}."
            )
        for name, known in (
            ("kl_estimator", ("k1", "k2", "k3")),
            ("objective", ("clip", "reinforce", "cispo")),
            ("ratio", ("token", "sequence")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"PolicyLoss.{name} must be {', '.join(known[:-1])} or {known[-1]}, "
                    f"got {value!r}."
                )
        if self.dual_clip and self.objective != "clip":
            raise ValueError(
                f"PolicyLoss.dual_clip has no effect with objective {self.objective!r}; "
                "set it to 0."
            )

    @property
    def uses_importance(self) -> bool:
        """Whether the policy term is weighted or masked by trainer / sampler."""
        return bool(self.tis_clip or self.importance_min or self.importance_max)

    @property
    def every_masked_row(self) -> bool:
        """Whether rows with a zero advantage still carry loss or gradient."""
        return bool(self.kl_coef or self.entropy_coef)


def merge_clip(
    loss: PolicyLoss | None, clip_low: float | None, clip_high: float | None
) -> PolicyLoss:
    """`loss` with the clips given beside it; without `loss`, clips of 0.2 and 0.28."""
    merged = PolicyLoss(clip_high=0.28) if loss is None else loss
    if clip_low is not None:
        merged = replace(merged, clip_low=clip_low)
    return merged if clip_high is None else replace(merged, clip_high=clip_high)
