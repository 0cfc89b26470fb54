"""Noise rewards flip negatives alone, with the probability that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from passk_fast.advantage.noise import flip_negatives


def test_only_zeros_are_flipped_and_only_to_one() -> None:
    rewards = np.tile([0.0, 0.5, 1.0], (200, 4))
    flipped = flip_negatives(rewards, 0.4, seed=1)
    changed = flipped != rewards
    assert (rewards[changed] == 0.0).all()
    assert (flipped[changed] == 1.0).all()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_share_that_is_flipped(share: float) -> None:
    flipped = flip_negatives(np.zeros((500, 32)), share, seed=2)
    error = np.sqrt(share * (1 - share) / flipped.size)
    assert abs(flipped.mean() - share) < 4 * error


def test_none_and_all() -> None:
    rewards = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert (flip_negatives(rewards, 0.0, seed=3) == rewards).all()
    assert (flip_negatives(rewards, 1.0, seed=3) == 1.0).all()


def test_the_seed_decides_and_the_rewards_stay() -> None:
    rewards = np.zeros((20, 20))
    first = flip_negatives(rewards, 0.5, seed=4)
    assert (first == flip_negatives(rewards, 0.5, seed=4)).all()
    assert (first != flip_negatives(rewards, 0.5, seed=5)).any()
    assert not rewards.any(), "a new array"


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        flip_negatives(np.zeros((1, 2)), share, seed=0)
