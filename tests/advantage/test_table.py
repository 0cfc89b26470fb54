"""The estimator's table against golden values, brute force and its own algebra."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passk_fast.advantage import advantages, eta, table, zero_advantage_rows

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "passk_analytic.json").read_text())
TABLES = [pytest.param(t, id=f"N{t['N']}-k{t['k']}") for t in GOLDEN["tables"]]

sizes = st.integers(2, 4096).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def _column(golden: dict[str, Any], name: str) -> np.ndarray:
    return np.array([row[name] or 0.0 for row in golden["rows"]])


@pytest.mark.parametrize("golden", TABLES)
def test_matches_golden_passk(golden: dict[str, Any]) -> None:
    got = table("passk", golden["N"], golden["k"])
    assert got.dtype == np.float64
    assert got.shape == (golden["N"] + 1, 2)
    np.testing.assert_allclose(got[:, 1], _column(golden, "A_pos"), rtol=1e-12, atol=0)
    np.testing.assert_allclose(got[:, 0], _column(golden, "A_neg"), rtol=1e-12, atol=0)
    np.testing.assert_allclose(eta(got), _column(golden, "eta"), rtol=1e-12, atol=0)
    assert int(eta(got).argmax()) in golden["argmax_eta"]


@pytest.mark.parametrize("golden", TABLES)
def test_matches_golden_grpo(golden: dict[str, Any]) -> None:
    got = table("grpo", golden["N"], 1)
    np.testing.assert_allclose(got[:, 1], _column(golden, "grpo_A_pos"), rtol=1e-12, atol=0)
    np.testing.assert_allclose(got[:, 0], _column(golden, "grpo_A_neg"), rtol=1e-12, atol=0)


def _brute_force(n: int, k: int, c: int) -> list[tuple[Fraction, Fraction]]:
    """(mean centred group reward over the k-subsets that hold i, its variance over all), each i."""
    groups = [(s, Fraction(min(s) < c)) for s in combinations(range(n), k)]  # the first c are right
    mean = sum((reward for _, reward in groups), Fraction(0)) / len(groups)
    variance = mean * (1 - mean)
    out = []
    for i in range(n):
        own = [reward for s, reward in groups if i in s]
        out.append((sum(own, Fraction(0)) / len(own) - mean, variance))
    return out


@pytest.mark.parametrize("n", range(2, 9))
def test_matches_brute_force_over_subsets(n: int) -> None:
    for k in range(1, n + 1):
        got = table("passk", n, k)
        for c in range(n + 1):
            for i, (centred, variance) in enumerate(_brute_force(n, k, c)):
                # the square is rational, so only the last root is rounded
                square = centred**2 / variance if variance else Fraction(0)
                want = math.copysign(math.sqrt(square), centred)
                assert got[c, int(i < c)] == pytest.approx(want, rel=1e-13, abs=0)


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_zero_exactly_where_the_integers_say(size: tuple[int, int]) -> None:
    n, k = size
    got = table("passk", n, k)
    assert np.isfinite(got).all()
    c = np.arange(n + 1)
    dead = (c == 0) | (n - c < k)
    np.testing.assert_array_equal(zero_advantage_rows(got), dead)
    assert (got[~dead, 1] > 0).all()
    assert (got[~dead, 0] < 0).all()


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_zero_sum_and_eta(size: tuple[int, int]) -> None:
    n, k = size
    got = table("passk", n, k)
    c = np.arange(n + 1)
    positive, negative = c * got[:, 1], (n - c) * got[:, 0]
    np.testing.assert_allclose(positive, -negative, rtol=1e-14, atol=0)
    np.testing.assert_allclose(eta(got), 2 * positive, rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 4096))
def test_k_1_is_grpo_with_the_population_deviation(n: int) -> None:
    got = table("passk", n, 1)
    np.testing.assert_array_equal(got, table("grpo", n, 1))
    c = np.arange(1, n)
    mean = c / n
    deviation = np.sqrt(mean * (1 - mean))
    np.testing.assert_allclose(got[1:-1, 1], (1 - mean) / deviation, rtol=1e-11)
    np.testing.assert_allclose(got[1:-1, 0], -mean / deviation, rtol=1e-11)


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_weight_against_grpo_is_at_most_one(size: tuple[int, int]) -> None:
    n, k = size
    assert (table("passk", n, k) <= table("grpo", n, 1) * (1 + 1e-12))[:, 1].all()


@pytest.mark.parametrize("k", [1, 2, 100, 1024, 2048, 3000, 4095])
def test_large_groups_match_exact_integers(k: int) -> None:
    """The released snippet overflows from N about 1030: C(N, k) leaves float64 there."""
    n = 4096
    with pytest.raises(OverflowError):
        float(math.comb(1030, 515))
    got = table("passk", n, k)
    total = Decimal(math.comb(n, k))
    for c in {1, 2, (n - k) // 3, (n - k) // 2, n - k} & set(range(1, n - k + 1)):
        none = Decimal(math.comb(n - c, k))
        with localcontext(prec=1400):  # 1 - q may need as many digits as C(n, k)
            want = (none / (total - none)).sqrt()
        if want > Decimal("1e-300"):
            assert got[c, 1] == pytest.approx(float(want), rel=1e-12, abs=0)
        else:  # too small for float64: held just above zero, so that it is not taken for dead
            assert 0 < got[c, 1] <= 1e-300


def test_no_row_underflows_to_dead() -> None:
    """At N = 4096, k = 2048 the chance q falls to 1e-1231, yet all 2048 rows are live."""
    assert int((~zero_advantage_rows(table("passk", 4096, 2048))).sum()) == 2048


def test_deviation_has_no_epsilon() -> None:
    golden = next(t for t in GOLDEN["tables"] if (t["N"], t["k"]) == (32, 4))
    with_epsilon = _column(golden, "A_pos_eps1e-6")
    got = table("passk", 32, 4)[:, 1]
    live = got > 0
    assert (np.abs(got[live] / with_epsilon[live] - 1) > 1e-7).all()


def test_k_equal_n_is_all_zero() -> None:
    assert (table("passk", 8, 8) == 0).all()
    assert zero_advantage_rows(table("passk", 8, 8)).all()


def test_look_up_of_rewards() -> None:
    rewards = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    got = advantages("passk", rewards, 2)
    lookup = table("passk", 4, 2)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got[0], [lookup[1, 1], *[lookup[1, 0]] * 3])
    np.testing.assert_array_equal(got[1], lookup[2, [0, 1, 1, 0]])
    assert (got[2:] == 0).all()
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-14)


@given(st.permutations([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), st.integers(1, 5))
def test_permutation_equivariant(rewards: list[float], k: int) -> None:
    got = advantages("passk", np.array([rewards]), k)[0]
    for reward, column in ((0.0, 0), (1.0, 1)):
        assert (got[np.array(rewards) == reward] == table("passk", 6, k)[2, column]).all()


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2), ()])
def test_rewards_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rewards must be \[P, N\]"):
        advantages("passk", np.zeros(shape), 1)


@pytest.mark.parametrize(
    ("estimator", "n", "k", "words"),
    [
        ("passk", 8, 0, "k must be between 1 and n = 8, got 0"),
        ("passk", 8, 9, "k must be between 1 and n = 8, got 9"),
        ("passk", 1, 1, "n must be at least 2, got 1"),
        ("pass@k", 8, 2, "estimator 'pass@k' is unknown.*Did you mean 'passk'"),
        ("ppo", 8, 2, "estimator 'ppo' is unknown; known: grpo, dr_grpo, rloo"),
    ],
)
def test_bad_arguments(estimator: str, n: int, k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table(estimator, n, k)


def test_the_shared_table_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table("passk", 8, 2)[1, 1] = 0.0


@pytest.mark.parametrize(
    ("n", "k", "words"),
    [
        (8.0, 2, "n must be a whole number, got 8.0"),
        (8, 2.0, "k must be a whole number, got 2.0"),
        (8, float("nan"), "k must be a whole number, got nan"),
        (8, "2", "k must be a whole number, got '2'"),
        (8, True, "k must be a whole number, got True"),
    ],
)
def test_counts_are_whole_numbers(n: Any, k: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        table("passk", n, k)


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([["1", "0"]], "rewards must be real numbers, got <U1"),
        ([[1j, 0]], "rewards must be real numbers, got complex128"),
        ([[None, 1]], "rewards must be real numbers, got object"),
        ([[1.7e308, -1.7e308]], "rewards must be within +-1e+300, got 1.7e+308 for prompt 0"),
        ([[0.5, np.inf]], "rewards must be finite, got inf for prompt 0, response 1"),
    ],
)
def test_rewards_that_are_no_numbers(rewards: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        advantages("rloo", rewards, 1)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int64", "bool"])
def test_tensors_are_taken(kind: str) -> None:
    import torch

    rewards = torch.tensor([[1, 0, 0, 1]]).to(getattr(torch, kind))
    if rewards.is_floating_point():
        rewards.requires_grad_()
    np.testing.assert_array_equal(
        advantages("passk", rewards, 2), advantages("passk", [[1, 0, 0, 1]], 2)
    )
