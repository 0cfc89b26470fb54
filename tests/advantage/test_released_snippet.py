"""The released snippet of arXiv 2508.10751 and a re-implementation: defects that we must not have.

Both are written out here as they are described, to show that each defect is real and absent.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from passk_fast.advantage import advantages, table


def released(rewards_N: np.ndarray, k: int) -> np.ndarray:
    """The snippet: floats of C(n, k), sigma + 1e-6, other rewards passed through raw."""
    n = len(rewards_N)
    c = int((rewards_N == 1).sum())
    mean = 1 - math.comb(n - c, k) / float(math.comb(n, k))
    sigma = math.sqrt(mean * (1 - mean))
    right = (1 - mean) / (sigma + 1e-6)
    wrong = (1 - mean - math.comb(n - c - 1, k - 1) / float(math.comb(n - 1, k - 1))) / (
        sigma + 1e-6
    )
    return np.where(rewards_N == 1, right, np.where(rewards_N == 0, wrong, rewards_N))


def without_zero_sum(n: int, c: int, k: int) -> tuple[float, float]:
    """A re-implementation elsewhere: A_wrong = -R / sigma with R the mean group reward."""
    mean = 1 - math.comb(n - c, k) / math.comb(n, k)
    sigma = math.sqrt(mean * (1 - mean))
    return (1 - mean) / sigma, -mean / sigma


def test_it_is_the_same_estimator_where_it_works() -> None:
    rewards = np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(
        released(rewards, 3), advantages("passk", rewards[None], 3)[0], rtol=1e-5
    )


def test_epsilon_in_the_deviation() -> None:
    """It biases every value, and by 10 % where sigma is 1e-5: C(n - c, k) rare."""
    n, k, c = 64, 32, 20
    rewards = np.array([1.0] * c + [0.0] * (n - c))
    exact = math.comb(n - c, k) / math.comb(n, k)
    want = math.sqrt(exact / (1 - exact))
    assert table("passk", n, k)[c, 1] == pytest.approx(want, rel=1e-12)
    assert abs(released(rewards, k)[0] / want - 1) > 1e-3


def test_rewards_other_than_0_and_1() -> None:
    rewards = np.array([1.0, 0.5, 0.0, 0.0])
    assert released(rewards, 2)[1] == 0.5  # raw reward as an advantage
    got = advantages("passk", rewards[None], 2)[0]
    assert got[1] != 0.5
    assert got.sum() == pytest.approx(0, abs=1e-14)
    with pytest.raises(ValueError, match="0 or 1"):
        advantages("passk_combination", rewards[None], 2)


def test_overflow_of_binomials() -> None:
    rewards = np.array([1.0] * 10 + [0.0] * 1030)
    with pytest.raises(OverflowError):
        released(rewards, 520)
    got = advantages("passk", rewards[None], 520)[0]
    assert np.isfinite(got).all()
    assert got[0] > 0 > got[-1]


def test_lost_zero_sum() -> None:
    n, c, k = 16, 4, 4
    right, wrong = without_zero_sum(n, c, k)
    assert abs(c * right + (n - c) * wrong) > 1
    got = table("passk", n, k)[c]
    assert got[1] == pytest.approx(right, rel=1e-12)
    assert c * got[1] + (n - c) * got[0] == pytest.approx(0, abs=1e-13)
