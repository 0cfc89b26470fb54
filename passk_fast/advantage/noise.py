"""Noise rewards: the baseline of arXiv 2508.10751 that rewards some wrong responses by chance."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage.subsets import Floats


def flip_negatives(
    rewards_PN: Float64[Floats, "P N"], share: float, seed: int
) -> Float64[Floats, "P N"]:
    """Rewards [P, N] in which each reward of 0 becomes 1 with probability `share` (a new array).

    The paper flips 10, 30 or 50 % of the negatives; that each is drawn on its own is a reading.

    Raises:
        ValueError: share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    chosen = np.random.default_rng(seed).random(rewards_PN.shape) < share
    return np.where((rewards_PN == 0.0) & chosen, 1.0, rewards_PN)
