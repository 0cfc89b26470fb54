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
#     A_(r) = base * g_(1) + sum_{2 <= t <= r} gap_t * up_t + sum_{t > r} gap_t * down_t
#
# so `up_t` counts for the responses at or above the gap, `down_t` for those below it. With binary
# rewards one gap is left, t = n - c + 1, so the same numbers are the estimator's table: row c is
# (down_t, up_t).
@dataclass(frozen=True, kw_only=True)
class GapWeights:
    """The weights of one (estimator, n, k). Example, Dr.GRPO at n = 2: base 0, up [.5], down
    [-.5]: the better of two responses gets half the gap, the other minus half."""

    base: float
    """Weight of the lowest reward; 0 makes the estimator shift-invariant."""
    up_T: Float64[Floats, " gaps"]
    """[n - 1], for t = 2..n."""
    down_T: Float64[Floats, " gaps"]
    """[n - 1], for t = 2..n."""


MakeWeights = Callable[..., GapWeights]
"""(n, k, **options) -> GapWeights."""


def table_of(weights: GapWeights) -> Float64[Floats, "states 2"]:
    """Binary rewards, float64 [n + 1, 2]: row c correct, column 0 wrong, 1 correct."""
    n = len(weights.up_T) + 1
    out = np.zeros((n + 1, 2))
    out[1:n, 1] = weights.up_T[::-1]
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
    ranked_advantages = np.repeat(weights.base * ranked[:, :1], ranked.shape[1], axis=1)
    ranked_advantages[:, 1:] += np.cumsum(gaps * weights.up_T, axis=1)
    ranked_advantages[:, :-1] += np.cumsum((gaps * weights.down_T)[:, ::-1], axis=1)[:, ::-1]
    out = np.empty_like(ranked_advantages)
    np.put_along_axis(out, order, ranked_advantages, axis=1)
    return out
