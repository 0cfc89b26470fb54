"""Estimators of real rewards [P, N] that are not linear in the gaps (see gaps.py), and RS-GRPO.

Comparing rewards decides whether a group has zero advantage, never the size of a float result.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage import pkpo
from passk_fast.advantage.binary import check_beta
from passk_fast.advantage.gaps import GapWeights, advantages_of
from passk_fast.advantage.subsets import Floats, share_within


def dr_grpo_weights(n: int, k: int) -> GapWeights:
    """A_i = r_i - mean. Source: Dr. GRPO, arXiv 2503.20783. It has no k.

    (1 - 1 / n) times an unbiased estimate of grad E[r] (grad pass@1). Centred, shift-invariant.
    """
    t = np.arange(2, n + 1)
    return GapWeights(base=0.0, up_T=(t - 1) / n, down_T=-(n - t + 1) / n)


def rloo_weights(n: int, k: int) -> GapWeights:
    """A_i = r_i - mean of the others = (n / (n - 1)) (r_i - mean). Source: RLOO, arXiv 2402.14740.

    It has no k. Unbiased for grad E[r] (grad pass@1), scale 1. Centred, shift-invariant.
    """
    return pkpo.centred(n, 1)


def best_minus_second_weights(n: int, k: int) -> GapWeights:
    """A_i = best - second best for the best response, 0 for all others; tied best ones get 0.

    Source: arXiv 2503.19595, the leave-one-out form max(g) - max(g without i). It has no k: sum_i
    A_i grad log pi(y_i) is unbiased for grad E[max of n] (n times the scale of (1 / n) sum). Not
    centred; shift-invariant.
    """
    up = np.zeros(n - 1)
    up[-1] = 1.0
    return GapWeights(base=0.0, up_T=up, down_T=np.zeros(n - 1))


def tailrl_weights(n: int, k: int) -> GapWeights:
    """A_i = integral over thresholds t of (1[r_i >= t] - p_t) / p_t dt, p_t the group's share of
    rewards >= t, over t between the group's lowest and highest reward. It has no k.

    A reading of TailRL, arXiv 2609.02987, whose text could not be consulted: MaxRL applied to
    every tail event r >= t and integrated, which is the continuous form that equals `maxrl` on
    binary rewards. So (1 / n) sum A grad log pi is unbiased for sum_{k=1}^{n-1} (1 / k) grad
    E[max of k]. Centred, shift-invariant, of degree 1 in the rewards.
    """
    t = np.arange(2, n + 1)
    return GapWeights(base=0.0, up_T=(t - 1) / (n - t + 1), down_T=-np.ones(n - 1))


def grpo(rewards_PN: Float64[Floats, "P N"], k: int, *, ddof: float = 0) -> Float64[Floats, "P N"]:
    """(r_i - mean) / std with `ddof` 0 or 1; 0 in a group whose rewards are all equal."""
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}.")
    num = rewards_PN.shape[1]
    deviation = advantages_of(dr_grpo_weights(num, 1), rewards_PN)
    live = rewards_PN.max(axis=1) > rewards_PN.min(axis=1)
    # Scaled by the largest deviation first, so that squares neither overflow nor vanish.
    scale = np.where(live, np.abs(deviation).max(axis=1), 1.0)[:, None]
    relative = deviation / scale
    std = np.sqrt((relative**2).sum(axis=1, keepdims=True) / (num - int(ddof)))
    return np.where(live[:, None], relative / np.where(live[:, None], std, 1.0), 0.0)


def passk(rewards_PN: Float64[Floats, "P N"], k: int) -> Float64[Floats, "P N"]:
    """max@k analytic: A_i = (e_i - rho_k) / sigma_k for real rewards.

    e_i is the mean over k-subsets that hold i of the largest reward, rho_k and sigma_k mean and
    population deviation over all k-subsets: arXiv 2508.10751, Eq. 11-15, with max in place of
    "any correct". e_i - rho_k = (1 - k / n) a_i with PKPO's centred a, evaluated by gaps. 0 where
    every k-subset has the same maximum: the n - k + 1 best rewards are equal.
    """
    num = rewards_PN.shape[1]
    if k == num:
        return np.zeros_like(rewards_PN)
    ranked = np.sort(rewards_PN, axis=1)
    live = (ranked[:, -1] > ranked[:, k - 1])[:, None]
    spread = np.where(live[:, 0], ranked[:, -1] - ranked[:, 0], 1.0)[:, None]
    lifted = (ranked - ranked[:, -1:]) / spread  # shift and scale cancel in A
    # P(the maximum is the t-th) = C(t - 1, k - 1) / C(n, k)
    chance = share_within(num - 1, k - 1) * (k / num)
    centre = (chance * lifted).sum(axis=1, keepdims=True)
    sigma = np.sqrt((chance * (lifted - centre) ** 2).sum(axis=1, keepdims=True))
    a = advantages_of(pkpo.centred(num, k), (rewards_PN - ranked[:, -1:]) / spread)
    return np.where(live, (1 - k / num) * a / np.where(live, sigma, 1.0), 0.0)


def rs_grpo(
    rewards_PN: Float64[Floats, "P N"], k: int, *, beta: float = 2.0
) -> Float64[Floats, "P N"]:
    """(e^{beta r_i} / mean_j e^{beta r_j} - 1) / beta, shifted by the largest reward."""
    check_beta(beta)
    best = rewards_PN.max(axis=1, keepdims=True)
    live = rewards_PN.min(axis=1, keepdims=True) < best
    weight = np.exp(beta * (rewards_PN - best))
    # expm1 keeps the difference where beta times the spread is small.
    centred = np.expm1(beta * (rewards_PN - best))
    centred = centred - centred.mean(axis=1, keepdims=True)
    return np.where(live, centred / (beta * weight.mean(axis=1, keepdims=True)), 0.0)
