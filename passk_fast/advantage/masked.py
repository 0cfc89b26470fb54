"""Advantages of groups in which some responses do not count (rollout.truncated = "mask").

The n' responses that ended are independent samples of the policy given that a response ends in
time, so an estimator of n' responses is exact for the Pass@k of that conditional policy.
"""

from __future__ import annotations

import numpy as np

from passk_fast.advantage.schedule import Schedule


def masked_advantages(
    schedule: Schedule, step: int, rewards_PN: np.ndarray, masked_PN: np.ndarray
) -> np.ndarray:
    """Advantages of one batch, float64 [P, N]; zero where `masked_PN` (bool) holds.

    Each group gets what the schedule gives a group of its other n' responses, in their order.
    Where an estimator refuses n' (below 2, below k), the whole group has none. A group in which
    nothing is masked gets what it gets without a mask, so the schedule must give advantages that
    depend on a group alone (`Schedule.check_separate_groups`).
    """
    out_PN = np.zeros(rewards_PN.shape)
    kept_PN = ~masked_PN
    counts_P = kept_PN.sum(axis=1)
    for n in np.unique(counts_P).tolist():
        if schedule.accepts(step, n):
            same_PN = kept_PN & (counts_P == n)[:, None]
            rewards = rewards_PN[same_PN].reshape(-1, n)
            out_PN[same_PN] = schedule.advantages(step, rewards).ravel()
    return out_PN
