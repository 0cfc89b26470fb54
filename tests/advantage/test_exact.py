"""Brute force over all groups in rational arithmetic, and unbiasedness by enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from passk_fast.advantage import advantages, table

VECTORS = [
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
    [-4, 2, 2, -4, 8, 1, 0],
    [5, 5, 5, 1],
    [1, 2],
    *([1] * c + [0] * (10 - c) for c in range(11)),
]


def _mean(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def _rho(rewards: list[Fraction], k: int) -> Fraction:
    return _mean([max(group) for group in combinations(rewards, k)])


def _s(g: list[Fraction], k: int, i: int) -> Fraction:
    held = [max(g[j] for j in group) for group in combinations(range(len(g)), k) if i in group]
    return sum(held, Fraction(0)) / math.comb(len(g), k)


def _without(g: list[Fraction], i: int) -> list[Fraction]:
    return g[:i] + g[i + 1 :]


def _brute(name: str, g: list[Fraction], k: int, i: int) -> Fraction:
    """The definition, as the papers write it."""
    n = len(g)
    if name == "pkpo_s":
        return _s(g, k, i)
    if name == "pkpo_sloo":
        return _s(g, k, i) - Fraction(k, n - 1) * _rho(_without(g, i), k)
    if name == "pkpo_sloo_minus_one":
        return _s(g, k, i) - Fraction(k, n) * _rho(_without(g, i), k - 1)
    if name == "pkpo_centred":
        return Fraction(n, k) * _s(g, k, i) - _rho(_without(g, i), k)
    if name == "rloo":
        return g[i] - _mean(_without(g, i))
    if name == "dr_grpo":
        return g[i] - _mean(g)
    assert name == "best_minus_second"
    return max(g) - max(_without(g, i))


@pytest.mark.parametrize("vector", VECTORS, ids=str)
@pytest.mark.parametrize(
    ("name", "low", "below"),
    [
        ("pkpo_s", 1, 0),
        ("pkpo_sloo", 1, 1),
        ("pkpo_sloo_minus_one", 2, 0),
        ("pkpo_centred", 1, 1),
        ("rloo", 1, 9),
        ("dr_grpo", 1, 9),
        ("best_minus_second", 1, 9),
    ],
)
def test_gap_estimators(vector: list[int], name: str, low: int, below: int) -> None:
    n = len(vector)
    g = [Fraction(v) for v in vector]
    for k in range(low, max(low, n - below) + 1):
        got = advantages(name, [vector], k)[0]
        want = [float(_brute(name, g, k, i)) for i in range(n)]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15 * max(map(abs, vector)))


GAPS = ["pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred"]


@pytest.mark.parametrize("low", [-1e3, -1e12, -1e16, -1e200])
@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_large_negative_rewards_take_nothing_from_the_others(name: str, low: float, k: int) -> None:
    """Two rewards like minus infinity, which triples and larger groups never see as their best."""
    rewards = [low, 1.0, 0.5, low, 2.0]
    want = [float(_brute(name, list(map(Fraction, rewards)), k, i)) for i in range(5)]
    got = advantages(name, [rewards], k)[0]
    # Where a mean of maxima holds a large reward it is large itself.
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("n", "k"), [(64, 3), (1000, 100), (4096, 4), (4096, 2048), (4096, 4095)])
def test_sloo_is_exact_where_it_changes_its_sign(n: int, k: int) -> None:
    """A correct response among c: s = k / n, and the others fail with C(n - c, k) / C(n - 1, k)."""
    got = table("pkpo_sloo", n, k)
    whole, rest = math.comb(n - 1, k), Fraction(k, n * (n - 1))
    for c in {1, 2, n // 2, n - 2, n - 1, *range(n // k - 2, n // k + 3)}:
        if not 1 <= c < n:
            continue
        without_success = Fraction(math.comb(n - c, k), whole)
        want = Fraction(k, n) - Fraction(k, n - 1) * (1 - without_success)
        assert want == rest * (n * without_success - 1)
        assert got[c, 1] == pytest.approx(float(want), rel=1e-14, abs=0)


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_analytic_of_real_rewards(vector: list[int]) -> None:
    """(e_i - rho) / sigma; the square is rational, so only the last root is rounded."""
    n = len(vector)
    for k in range(1, n + 1):
        groups = [(s, Fraction(max(vector[j] for j in s))) for s in combinations(range(n), k)]
        rho = _mean([r for _, r in groups])
        variance = _mean([(r - rho) ** 2 for _, r in groups])
        got = advantages("passk", [vector], k)[0]
        for i in range(n):
            centred = _mean([r for s, r in groups if i in s]) - rho
            square = centred**2 / variance if variance else Fraction(0)
            want = math.copysign(math.sqrt(square), centred)
            assert got[i] == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_full_sampling_by_hand() -> None:
    """Two groups of three and a leftover: rewards 1 and 0, standardised to 1 and -1."""
    got = advantages("passk_full", [[0, 1, 0, 0, 0, 0, 1]], 3)[0]
    np.testing.assert_array_equal(got, [1, 1, 1, -1, -1, -1, 0])
    np.testing.assert_allclose(  # maxima 5 and 2
        advantages("passk_full", [[5, 1, 2, 0]], 2)[0], [1, 1, -1, -1], rtol=1e-15
    )


def test_full_sampling_with_k_1_is_grpo() -> None:
    rewards = np.array([[0, 1, 0, 0, 1], [0.5, 1, 0.25, 0, 1]])
    got = advantages("passk_full", rewards, 1)
    np.testing.assert_allclose(got, advantages("grpo", rewards, 1), rtol=1e-13, atol=1e-16)


def test_bootstrap_sums_over_its_groups() -> None:
    rewards = np.array([[1.0, 0, 0, 0, 0, 0]])
    got = advantages("passk_bootstrap", rewards, 2, seed=3)
    rng = np.random.default_rng([3, 0])
    members = rng.random((6, 6)).argsort(axis=1)[:, :2]
    reward = (members == 0).any(axis=1).astype(float)
    score = (reward - reward.mean()) / reward.std()
    want = [score[(members == i).any(axis=1)].sum() for i in range(6)]
    np.testing.assert_allclose(got[0], want, rtol=1e-12, atol=1e-15)
    assert (got == advantages("passk_bootstrap", rewards, 2, seed=3)).all()
    assert (got != advantages("passk_bootstrap", rewards, 2, seed=4)).any()
    with pytest.raises(ValueError, match="num_groups"):
        advantages("passk_bootstrap", rewards, 2, num_groups=-3)


def test_many_bootstrap_groups_near_k_times_the_analytic_value() -> None:
    """sum / (num_groups / N) tends to k times the mean over groups that hold i."""
    rewards = np.tile([1.0, 0, 0, 0, 0, 0, 0, 0], (50, 1))
    got = advantages("passk_bootstrap", rewards, 4, seed=0, num_groups=8000) / 1000
    np.testing.assert_allclose(
        got.mean(axis=0), 4 * advantages("passk", rewards[:1], 4)[0], rtol=0.03
    )


# ---- unbiasedness --------------------------------------------------------------------------------

REWARDS = np.array([0.0, 0.3, 1.0])
POLICY = np.array([0.5, 0.3, 0.2])


def _gradient(num: int, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """E[sum_i value_i grad log pi(y_i)] by the logits, over all samples of `num` responses."""
    samples = np.array(list(product(range(len(POLICY)), repeat=num)))
    chance = POLICY[samples].prod(axis=1)
    score = np.eye(len(POLICY))[samples] - POLICY
    return np.einsum("s,si,sil->l", chance, value(samples), score)


def _true_gradient(rewards: np.ndarray, k: int) -> np.ndarray:
    """grad E[max of k]."""
    return _gradient(k, lambda y: np.repeat(rewards[y].max(axis=1)[:, None], k, axis=1))


def _estimated(name: str, rewards: np.ndarray, n: int, k: int) -> np.ndarray:
    return _gradient(n, lambda y: advantages(name, rewards[y], k))


@pytest.mark.parametrize("rewards", [REWARDS, np.array([0.0, 1.0, 0.0])], ids=["real", "binary"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_unbiased_for_the_largest_of_k(rewards: np.ndarray, k: int) -> None:
    n, want = 5, _true_gradient(rewards, k)
    np.testing.assert_allclose(_estimated("pkpo_s", rewards, n, k), want, rtol=1e-11)
    if k < n:
        np.testing.assert_allclose(_estimated("pkpo_sloo", rewards, n, k), want, rtol=1e-11)
        centred = k / n * _estimated("pkpo_centred", rewards, n, k)
        np.testing.assert_allclose(centred, want, rtol=1e-11)
    if k > 1:
        got = _estimated("pkpo_sloo_minus_one", rewards, n, k)
        np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.parametrize("rewards", [REWARDS, np.array([0.0, 1.0, 0.0])], ids=["real", "binary"])
def test_unbiased_for_what_their_docstrings_say(rewards: np.ndarray) -> None:
    n = 5
    first = _true_gradient(rewards, 1)
    np.testing.assert_allclose(_estimated("rloo", rewards, n, 1) / n, first, rtol=1e-11)
    np.testing.assert_allclose(
        _estimated("dr_grpo", rewards, n, 1) / n, (1 - 1 / n) * first, rtol=1e-11
    )
    np.testing.assert_allclose(
        _estimated("best_minus_second", rewards, n, 1), _true_gradient(rewards, n), rtol=1e-11
    )
    want = sum(_true_gradient(rewards, k) / k for k in range(1, n))
    np.testing.assert_allclose(_estimated("tailrl", rewards, n, 1) / n, want, rtol=1e-11)
    if set(rewards) == {0.0, 1.0}:
        np.testing.assert_allclose(_estimated("maxrl", rewards, n, 1) / n, want, rtol=1e-11)


def test_unnormalised_analytic_is_short_by_1_minus_k_over_n() -> None:
    n, k, rewards = 5, 2, np.array([0.0, 1.0, 0.0])
    q = np.array([math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
    unnormalised = table("passk", n, k) * np.sqrt(q * (1 - q))[:, None]

    def value(y: np.ndarray) -> np.ndarray:
        right = rewards[y].astype(int)
        return unnormalised[right.sum(axis=1)[:, None], right]

    np.testing.assert_allclose(
        k / n * _gradient(n, value), (1 - k / n) * _true_gradient(rewards, k), rtol=1e-11
    )


@pytest.mark.parametrize("name", ["passk", "grpo", "passk_combination", "rs_grpo", "f_grpo"])
def test_biased_ones_are_not_parallel_by_accident(name: str) -> None:
    """With two prompts of different success rates no one factor maps E[A] to grad pass@k."""
    n, k = 5, 2
    factors = []
    for p in (0.2, 0.6):
        weight = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
        lookup, c = table(name, n, k), np.arange(n + 1)
        estimate = weight @ (c * lookup[:, 1] * (1 - p) - (n - c) * lookup[:, 0] * p)
        factors.append(estimate / (k * (1 - p) ** k * p))
    assert abs(factors[0] / factors[1] - 1) > 0.05
