"""Pass@K Policy Optimization (PKPO), arXiv 2505.15201, as gap weights (see gaps.py).

rho_k(g) is the mean over all k-subsets of the largest reward. All forms here satisfy
E[sum_i A_i grad log pi(y_i)] = grad E[max of k], `pkpo_centred` after multiplying by k / n.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage.gaps import GapWeights
from passk_fast.advantage.subsets import Floats, share_beyond, share_within


def _refuse_normalising(normalise: float) -> None:
    """Two values that are centred and scaled are always GRPO's two, whatever k is."""
    if normalise:
        raise ValueError(
            "normalise: a PKPO transform divided by the group's standard deviation is GRPO exactly "
            "when rewards are binary, whatever k is. Leave it off, or take estimator 'grpo'."
        )


def _refuse_full_k(estimator: str, n: int, k: int) -> None:
    if k >= n:
        raise ValueError(
            f"k must be below n = {n} for estimator {estimator!r}, whose baseline needs k "
            f"responses besides one's own; got {k}."
        )


def s(n: int, k: int, *, normalise: float = 0) -> GapWeights:
    """s_i = (1 / C(n, k)) * sum over k-subsets I with i of max_I g (Eq. 19). 1 <= k <= n.

    = (k / n) E[max of I | i in I]. Unbiased for grad E[max of k], scale 1. No baseline: neither
    centred nor shift-invariant, and an all-correct group still moves. sum_i s_i = k rho_k.
    """
    _refuse_normalising(normalise)
    t = np.arange(2, n + 1)
    scale = k / n
    # P(max of I >= g_(t)) is 1 for i at or above t, else 1 - C(t - 2, k - 1) / C(n - 1, k - 1).
    down = scale * share_beyond(n - 1, k - 1)[t - 2]
    return GapWeights(base=scale, up_T=np.zeros(n - 1), down_T=down, first=k)


def sloo(n: int, k: int, *, normalise: float = 0) -> GapWeights:
    """sloo_i = s_i - (k / (n - 1)) rho_k(g without i) (Eq. 29). Needs k < n.

    The baseline is independent of response i, so it is unbiased for grad E[max of k], scale 1.
    Neither centred nor shift-invariant: sum_i sloo_i = -k rho_k / (n - 1). Equations 31-32 as
    commonly stored are off by one; this is the form that enumeration confirms.
    """
    _refuse_normalising(normalise)
    _refuse_full_k("pkpo_sloo", n, k)
    t = np.arange(2, n + 1)
    # sloo_i = k / n a_i - rest E[max of I | i not in I], which lies below gap t with probability
    # C(t - 1, k) / C(n - 1, k) for i above the gap, C(t - 2, k) / C(n - 1, k) for i below.
    rest = k / (n * (n - 1))
    return GapWeights(
        base=-rest,
        up_T=k / (n - 1) * share_within(n - 1, k)[t - 1],
        down_T=k / n * centred(n, k).down_T - rest * share_beyond(n - 1, k)[t - 2],
        first=k,
        total_T=rest * _n_times_share_less_one(n, k),
    )


def _n_times_share_less_one(n: int, k: int) -> Float64[Floats, " {n-1}"]:
    """n C(m, k) / C(n - 1, k) - 1 for m = 1..n - 1, in whole numbers: it changes its sign."""
    whole = math.comb(n - 1, k)
    counts = [0] * (k - 1) + [1]
    for m in range(k + 1, n):
        counts.append(counts[-1] * m // (m - k))
    return np.array([(n * count - whole) / whole for count in counts])


def sloo_minus_one(n: int, k: int, *, normalise: float = 0) -> GapWeights:
    """s_i - (k / n) rho_{k-1}(g without i) (Eq. 33), the paper's choice. Needs 2 <= k <= n.

    = (k / n) E[(g_i - max of k - 1 others)^+], so it is never negative. Unbiased for
    grad E[max of k], scale 1. Shift-invariant, not centred: the sum is k (rho_k - rho_{k-1}).
    """
    _refuse_normalising(normalise)
    if k < 2:
        raise ValueError(
            f"k must be at least 2 for estimator 'pkpo_sloo_minus_one', got {k}; at k = 1 take "
            "'pkpo_sloo' or 'rloo'."
        )
    t = np.arange(2, n + 1)
    up = k / n * share_within(n - 1, k - 1)[t - 1]
    return GapWeights(base=0.0, up_T=up, down_T=np.zeros(n - 1))


def centred(n: int, k: int, *, normalise: float = 0) -> GapWeights:
    """a_i = E[max of I | i in I] - E[max of I | i not in I], the canonical form. Needs k < n.

    (k / n) a is unbiased for grad E[max of k], so the scale is n / k. Sums to zero over the
    group and is shift-invariant; k = 1 is RLOO exactly. The analytic Pass@k advantage is
    (1 - k / n) a_i / sigma.
    """
    _refuse_normalising(normalise)
    _refuse_full_k("pkpo_centred", n, k)
    t = np.arange(2, n + 1)
    # above: C(t - 1, k) / C(n - 1, k); below: minus C(t - 2, k - 1) / C(n - 1, k - 1) times
    # (n - t + 1) / (n - k); (n - t + 1) responses above and (t - 1) below balance.
    up = share_within(n - 1, k)[t - 1]
    down = -share_within(n - 1, k - 1)[t - 2] * ((n - t + 1) / (n - k))
    return GapWeights(base=0.0, up_T=up, down_T=down)
