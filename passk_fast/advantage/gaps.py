"""Estimators that are linear in the gaps between sorted rewards: one idea for both reward kinds.

Any estimator that is a mean of maxima is one of them. O(n log n) per group; ties get equal values
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage.subsets import Floats


# Sort the rewards of a group, g_(1) <= ... <= g_(n), with gap_t = g_(t) - g_(t-1). The response of
# rank r has
#
#     A_(r) = base * g_(r) + sum_{2 <= t <= r} gap_t * up_t + sum_{t > r} gap_t * down_t
#
# so `up_t` counts for the responses at or above the gap, `down_t` for those below it. With binary
# rewards one gap is left, t = n - c + 1, so the same numbers are the estimator's table: row c is
# (down_t, base + up_t).
#
# A mean of maxima over k-subsets does not depend on the k - 1 lowest rewards: up_t = 0 and down_t =
# base for t <= k, so that own reward and gaps add up to base * g_(k) for a response below. That is
# taken from g_(k) at once: a reward of -1e12 would leave nothing of the others in the difference.
@dataclass(frozen=True, kw_only=True)
class GapWeights:
    """The weights of one (estimator, n, k). Example, Dr.GRPO at n = 2: base 0, up [.5], down
    [-.5]: the better of two responses gets half the gap, the other minus half."""

    base: float
    """Weight of a response's own reward; 0 makes the estimator shift-invariant."""
    up_T: Float64[Floats, " gaps"]
    """[n - 1], for t = 2..n."""
    down_T: Float64[Floats, " gaps"]
    """[n - 1], for t = 2..n."""
    first: int = 1
    """The rewards below the `first` lowest one count for nothing."""
    total_T: Float64[Floats, " gaps"] | None = None
    """base + up_T where that would cancel."""


MakeWeights = Callable[..., GapWeights]
"""(n, k, **options) -> GapWeights."""


def table_of(weights: GapWeights) -> Float64[Floats, "states 2"]:
    """Binary rewards, float64 [n + 1, 2]: row c correct, column 0 wrong, 1 correct."""
    n = len(weights.up_T) + 1
    out = np.zeros((n + 1, 2))
    total_T = weights.base + weights.up_T if weights.total_T is None else weights.total_T
    out[1:n, 1] = total_T[::-1]
    out[1:n, 0] = weights.down_T[::-1]
    out[n, 1] = weights.base
    return out


def advantages_of(
    weights: GapWeights, rewards_PN: Float64[Floats, "P N"]
) -> Float64[Floats, "P N"]:
    """Real rewards [P, N] -> advantages, float64 [P, N]."""
    order = np.argsort(rewards_PN, axis=1, kind="stable")
    ranked = np.take_along_axis(rewards_PN, order, axis=1)
    gaps = np.diff(ranked, axis=1)
    down_T = np.where(np.arange(len(weights.down_T)) < weights.first - 1, 0.0, weights.down_T)
    counted = np.maximum(np.arange(ranked.shape[1]), weights.first - 1)
    ranked_advantages = weights.base * ranked[:, counted]
    ranked_advantages[:, 1:] += np.cumsum(gaps * weights.up_T, axis=1)
    ranked_advantages[:, :-1] += np.cumsum((gaps * down_T)[:, ::-1], axis=1)[:, ::-1]
    out = np.empty_like(ranked_advantages)
    np.put_along_axis(out, order, ranked_advantages, axis=1)
    return out
