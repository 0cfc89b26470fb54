"""Each row of the table of properties, over random groups and sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passk_fast.advantage import (
    advantages,
    dead_states,
    estimators,
    eta,
    table,
    zero_advantage_rows,
)
from passk_fast.advantage.registry import find

ALL = estimators()
SAMPLED = ("passk_full", "passk_bootstrap")
TABLES = tuple(name for name in ALL if name not in SAMPLED)
REAL = tuple(name for name in ALL if find(name).real is not None)
FIXED_REAL = tuple(name for name in REAL if name not in SAMPLED)
NOT_CENTRED = ("pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "best_minus_second")
CENTRED = tuple(name for name in TABLES if name not in NOT_CENTRED)
CENTRED_REAL = tuple(name for name in CENTRED if name in REAL)
SHIFT_INVARIANT = (
    "grpo", "dr_grpo", "rloo", "passk", "pkpo_centred", "pkpo_sloo_minus_one", "best_minus_second",
    "tailrl", "rs_grpo",
)  # fmt: skip
DEGREE_1 = ("rloo", "dr_grpo", "pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred",
            "best_minus_second", "tailrl")  # fmt: skip
DEGREE_0 = ("grpo", "passk")
MOVES_ALL_EQUAL = ("pkpo_s", "pkpo_sloo")
UNSORTED = ("passk_full", "passk_bootstrap")


def sizes(largest: int) -> st.SearchStrategy[tuple[int, int]]:
    """(n, k) that every estimator takes: 2 <= k < n."""
    return st.integers(3, largest).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n - 1)))


@st.composite
def groups(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Rewards [1, N] on a grid (so ties happen and shifts are exact), and k."""
    n, k = draw(sizes(12))
    values = draw(st.lists(st.integers(0, 16), min_size=n, max_size=n))
    return np.array([values]) / 16, k


def scale(x: np.ndarray) -> float:
    """The size to compare against."""
    return max(1e-300, float(np.abs(x).max()))


@pytest.mark.parametrize("name", FIXED_REAL)
@settings(deadline=None, max_examples=40)
@given(group=groups(), data=st.data())
def test_permutation_equivariant_and_ties_equal(
    name: str, group: tuple[np.ndarray, int], data: st.DataObject
) -> None:
    rewards, k = group
    order = data.draw(st.permutations(range(rewards.shape[1])))
    got = advantages(name, rewards, k)
    np.testing.assert_allclose(
        advantages(name, rewards[:, order], k), got[:, order], atol=1e-14 * scale(got)
    )
    for value in set(rewards[0]):
        assert len(set(got[0][rewards[0] == value])) == 1


@pytest.mark.parametrize("name", FIXED_REAL)
@settings(deadline=None, max_examples=40)
@given(group=groups())
def test_monotone_in_the_reward(name: str, group: tuple[np.ndarray, int]) -> None:
    rewards, k = group
    got = advantages(name, rewards, k)[0][np.argsort(rewards[0])]
    assert (np.diff(got) >= -1e-13 * scale(got)).all()


@pytest.mark.parametrize("name", TABLES)
@settings(deadline=None, max_examples=30)
@given(size=sizes(300))
def test_correct_is_never_below_wrong(name: str, size: tuple[int, int]) -> None:
    got = table(name, *size)[1:-1]
    assert (got[:, 1] >= got[:, 0] - 1e-13).all()


@pytest.mark.parametrize("name", CENTRED)
@settings(deadline=None, max_examples=30)
@given(size=sizes(4096))
def test_tables_sum_to_zero(name: str, size: tuple[int, int]) -> None:
    n, k = size
    got, c = table(name, n, k), np.arange(n + 1)
    np.testing.assert_allclose(c * got[:, 1], -(n - c) * got[:, 0], rtol=1e-12, atol=1e-290)


@pytest.mark.parametrize("name", CENTRED_REAL)
@settings(deadline=None, max_examples=40)
@given(group=groups())
def test_real_rewards_sum_to_zero(name: str, group: tuple[np.ndarray, int]) -> None:
    got = advantages(name, group[0], group[1])
    assert abs(got.sum()) <= 1e-12 * max(1.0, scale(got))


@pytest.mark.parametrize("name", NOT_CENTRED)
def test_those_without_a_zero_sum(name: str) -> None:
    got = advantages(name, [[0.0, 0.0, 1.0, 0.25]], 2)
    assert abs(got.sum()) > 0.01


def test_sums_of_pkpo() -> None:
    """sum s = k rho_k, sloo: -k rho_k / (n - 1), sloo_minus_one: k (rho_k - rho_{k-1})."""
    from itertools import combinations

    rewards = np.array([[0.1, 0.9, 0.4, 0.4, 0.7]])
    n = 5
    rho = [np.mean([max(g) for g in combinations(rewards[0], k)]) for k in range(1, n + 1)]
    for k in range(2, n):
        total = {name: advantages(name, rewards, k).sum() for name in TABLES if "pkpo" in name}
        assert total["pkpo_s"] == pytest.approx(k * rho[k - 1])
        assert total["pkpo_sloo"] == pytest.approx(-k * rho[k - 1] / (n - 1))
        assert total["pkpo_sloo_minus_one"] == pytest.approx(k * (rho[k - 1] - rho[k - 2]))


@pytest.mark.parametrize("name", FIXED_REAL)
@settings(deadline=None, max_examples=40)
@given(group=groups(), shift=st.integers(-64, 64))
def test_shifts(name: str, group: tuple[np.ndarray, int], shift: int) -> None:
    rewards, k = group
    assume(shift != 0)
    got, moved = advantages(name, rewards, k), find(name).real
    assert moved is not None
    shifted = moved(rewards + shift / 16, k)
    if name in SHIFT_INVARIANT:
        np.testing.assert_allclose(shifted, got, atol=1e-12 * max(1.0, scale(got)))
    else:
        assert name in MOVES_ALL_EQUAL
        assert np.abs(shifted - got).max() > 1e-6 / rewards.shape[1] ** 2


@pytest.mark.parametrize("name", DEGREE_1 + DEGREE_0)
@settings(deadline=None, max_examples=40)
@given(group=groups(), factor=st.sampled_from([0.125, 2.0, 64.0]))
def test_degree_in_the_reward_scale(
    name: str, group: tuple[np.ndarray, int], factor: float
) -> None:
    rewards, k = group
    by_real = find(name).real
    assert by_real is not None
    want = by_real(rewards, k) * (factor if name in DEGREE_1 else 1.0)
    np.testing.assert_allclose(by_real(rewards * factor, k), want, atol=1e-12 * max(1, scale(want)))


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=20)
@given(size=sizes(40), right=st.booleans())
def test_all_equal_groups(name: str, size: tuple[int, int], right: bool) -> None:
    n, k = size
    got = advantages(name, np.full((1, n), float(right)), k)
    if right and name in MOVES_ALL_EQUAL:
        assert (got != 0).all()
    else:
        assert (got == 0).all()


@pytest.mark.parametrize("name", FIXED_REAL)
@settings(deadline=None, max_examples=25)
@given(size=sizes(40), data=st.data())
def test_table_and_real_path_agree(name: str, size: tuple[int, int], data: st.DataObject) -> None:
    n, k = size
    c = data.draw(st.integers(0, n))
    rewards = np.array([[1.0] * c + [0.0] * (n - c)])
    by_real = find(name).real
    assert by_real is not None
    want = advantages(name, rewards, k)
    np.testing.assert_allclose(by_real(rewards, k), want, rtol=1e-11, atol=1e-14 * scale(want))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("k", [2, 3, 64, 2000, 2048, 4094, 4095])
def test_large_groups(name: str, k: int) -> None:
    """N = 4096: finite, sign-right, dead exactly where the definition says."""
    n = 4096
    got = table(name, n, k)
    assert np.isfinite(got).all()
    live = np.flatnonzero(~zero_advantage_rows(got))
    first, last = {
        "passk": (1, n - k),
        "passk_exceeding": (1, n - k),
        "pkpo_centred": (1, n - k),
        "pkpo_sloo_minus_one": (1, n - k + 1),
        "pkpo_s": (1, n),
        "pkpo_sloo": (1, n),
        "pass1_no_easy": (1, n // 2),
        "passk_piecewise": (1, max(n // 2, n - k)),
        "best_minus_second": (1, 1),
    }.get(name, (1, n - 1))
    assert (live[0], live[-1], len(live)) == (first, last, last - first + 1)
    rewards = np.zeros((1, n))
    rewards[0, : live[0]] = 1
    assert np.isfinite(advantages(name, rewards, k)).all()


@pytest.mark.parametrize("name", SAMPLED)
@settings(deadline=None, max_examples=20)
@given(size=sizes(20), data=st.data())
def test_sampled_ones_are_zero_where_they_say(
    name: str, size: tuple[int, int], data: st.DataObject
) -> None:
    n, k = size
    dead = dead_states(name, n, k)
    c = data.draw(st.sampled_from(list(np.flatnonzero(dead))))
    rewards = np.array([[1.0] * c + [0.0] * (n - c)])
    assert (advantages(name, rewards, k) == 0).all()
    got = advantages(name, np.random.default_rng(n).integers(0, 2, (5, n)), k)
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-11)
    assert np.isfinite(got).all()


def test_large_real_groups() -> None:
    """4096 real rewards, any k: finite, ordered, the identity with the analytic estimator holds."""
    rewards = np.random.default_rng(0).random((1, 4096))
    for k in (2, 100, 2048, 4095):
        for name in FIXED_REAL:
            got = advantages(name, rewards, k)
            assert np.isfinite(got).all(), name
            ordered = got[0][np.argsort(rewards[0])]
            assert (np.diff(ordered) >= -1e-12 * scale(got)).all(), name
        a = advantages("pkpo_centred", rewards, k)
        ratio = advantages("passk", rewards, k) / a
        big = np.abs(a) > 1e-6 * scale(a)
        assert np.ptp(ratio[big]) < 1e-8 * ratio[big].mean()


def test_k_1_of_the_centred_form_is_rloo() -> None:
    np.testing.assert_array_equal(table("pkpo_centred", 16, 1), table("rloo", 16, 1))


def test_dividing_by_the_deviation_makes_any_centred_pkpo_grpo() -> None:
    """Why `normalise` is refused: k disappears."""
    n = 16
    for k in (2, 5, 9):
        for c in range(1, n - k + 1):
            rewards = np.array([1.0] * c + [0.0] * (n - c))
            for name in ("pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred"):
                values = advantages(name, rewards[None], k)[0]
                standardised = (values - values.mean()) / values.std()
                np.testing.assert_allclose(
                    standardised, advantages("grpo", rewards[None], 1)[0], rtol=1e-9
                )


@pytest.mark.parametrize("name", ["pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred"])
def test_normalised_pkpo_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="GRPO exactly"):
        table(name, 16, 4, normalise=True)
    with pytest.raises(ValueError, match="GRPO exactly"):
        advantages(name, [[1, 0, 0, 1]], 2, normalise=1)


def test_eta_peaks() -> None:
    """N = 32: c = 16 at k = 1, 8 at k = 4 (25 %), 4 at k = 8 (12.5 %), 2 at k = 16."""
    for k, c, height in ((1, 16, 32.0), (4, 8, 10.3622247), (8, 4, 5.181112348), (16, 2, None)):
        got = eta(table("passk", 32, k))
        assert int(got.argmax()) == c
        if height:
            assert got.max() == pytest.approx(height, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "k", "options", "words"),
    [
        ("pkpo_sloo", 8, {}, "k must be below n = 8"),
        ("pkpo_centred", 8, {}, "k must be below n = 8"),
        ("pkpo_sloo_minus_one", 1, {}, "k must be at least 2"),
        ("passk", 9, {}, "k must be between 1 and n = 8"),
        ("maxrl", 0, {}, "k must be between 1 and n = 8"),
        ("grpo", 1, {"ddof": 2}, "ddof must be 0 or 1"),
        ("pass1_no_easy", 1, {"tau": 1.5}, "tau must be between 0 and 1"),
        ("passk_piecewise", 2, {"tau": -0.1}, "tau must be between 0 and 1"),
        ("rs_grpo", 1, {"beta": 0}, "beta must be above 0"),
        ("f_grpo", 1, {"gamma": -1}, "gamma must be 0 or more"),
        ("grpo", 1, {"tau": 0.5}, "option 'tau' is not one of estimator 'grpo'"),
        ("passk_full", 2, {}, "is sampled"),
        ("rlo", 2, {}, "Did you mean 'rloo'"),
    ],
)
def test_refusals(name: str, k: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table(name, 8, k, **options)


@pytest.mark.parametrize("name", sorted(set(ALL) - set(REAL)))
@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0])
def test_real_rewards_to_a_binary_estimator_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{name}.*rewards of 0 or 1, got {bad}"):
        advantages(name, [[1.0, 0.0, bad, 0.0]], 2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rewards_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=r"rewards must be finite.*prompt 1, response 2"):
        advantages(name, np.array([[0.0, 0, 0, 1], [1.0, 0.0, bad, 0.0]]), 2)


def test_groups_of_unequal_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards.*group 0 has 3 responses, group 2 has 2"):
        advantages("passk", [[1, 0, 0], [0, 0, 1], [1, 0]], 2)


@pytest.mark.parametrize("name", ALL)
def test_every_estimator_says_what_it_is(name: str) -> None:
    """Formula, source, bias and scale stand in the docstring."""
    text = (find(name).describe.__doc__ or "").lower()
    assert "biased" in text
    assert "=" in text or "alg." in text
    assert any(word in text for word in ("arxiv", "eq.", "alg.", "fig.", "paper", "canonical"))
