"""Pass@k by sampled groups, arXiv 2508.10751: full sampling (Alg. 1) and bootstrap (Alg. 2).

These have no table: the advantage depends on which responses share a group. A group's reward is
its largest reward; groups are centred and divided by their population deviation; a prompt whose
groups all have one reward gets 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage.subsets import Floats


def _standardised(group_rewards_PG: Float64[Floats, "P G"]) -> Float64[Floats, "P G"]:
    """(R - mean) / population std over the groups, 0 where all are equal."""
    low, high = (f(group_rewards_PG, axis=1, keepdims=True) for f in (np.min, np.max))
    live = high > low
    relative = (group_rewards_PG - low) / np.where(live, high - low, 1.0)
    deviation = relative - relative.mean(axis=1, keepdims=True)
    std = np.sqrt((deviation**2).mean(axis=1, keepdims=True))
    return np.where(live, deviation / np.where(live, std, 1.0), 0.0)


def full(rewards_PN: Float64[Floats, "P N"], k: int) -> Float64[Floats, "P N"]:
    """Full sampling (Alg. 1): floor(N / k) groups of k consecutive responses; every member gets
    its group's standardised reward; leftover responses get 0.

    Unbiased for nothing at finite N / k (the deviation is estimated from few groups); with k = 1
    it is GRPO. The order of responses is random already, so consecutive groups are random ones.
    """
    num_prompts, num = rewards_PN.shape
    count = num // k
    group_rewards = rewards_PN[:, : count * k].reshape(num_prompts, count, k).max(axis=2)
    out = np.zeros_like(rewards_PN)
    out[:, : count * k] = np.repeat(_standardised(group_rewards), k, axis=1)
    return out


def bootstrap(
    rewards_PN: Float64[Floats, "P N"], k: int, *, seed: int = 0, num_groups: float = 0
) -> Float64[Floats, "P N"]:
    """Bootstrap (Alg. 2): `num_groups` (0: N) groups of k distinct responses; A_i = the **sum**
    of the standardised rewards of the groups that hold i.

    Biased, as the analytic estimator that it samples. About k times the analytic scale, and not
    its mean at finite num_groups: compare estimators only after matching scales. Draws depend on
    `seed` and the row alone.
    """
    num_prompts, num = rewards_PN.shape
    count = int(num_groups) or num
    if count < 1 or count != (num_groups or num):
        raise ValueError(f"num_groups must be a whole number, 0 (N) or more, got {num_groups}.")
    out = np.zeros_like(rewards_PN)
    for p in range(num_prompts):
        rng = np.random.default_rng([seed, p])
        members = rng.random((count, num)).argsort(axis=1)[:, :k]
        score = _standardised(rewards_PN[p][members].max(axis=1)[None])[0]
        np.add.at(out[p], members.ravel(), np.repeat(score, k))
    return out
