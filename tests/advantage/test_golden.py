"""Every estimator against reference values that were computed in exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from passk_fast.advantage import advantages, eta, table
from passk_fast.advantage.registry import find
from tests.advantage.golden import load

RTOL = 1e-12
PKPO = {
    "s": "pkpo_s",
    "sloo": "pkpo_sloo",
    "sloo_minus_one": "pkpo_sloo_minus_one",
    "canonical": "pkpo_centred",
}
NEIGHBOURS: dict[str, tuple[str, dict[str, float]]] = {
    "grpo": ("grpo", {}),
    "rloo": ("rloo", {}),
    "drgrpo": ("dr_grpo", {}),
    "maxrl": ("maxrl", {}),
    "rs_beta2": ("rs_grpo", {"beta": 2.0}),
    "focal_g1": ("f_grpo", {"gamma": 1.0}),
}


@pytest.mark.parametrize("row", load("neighbours_binary")["rows"], ids=str)
def test_neighbours(row: dict[str, Any]) -> None:
    n, c = row["N"], row["n_pos"]
    rewards = np.array([[1.0] * c + [0.0] * (n - c)])
    for key, (name, options) in NEIGHBOURS.items():
        got = table(name, n, 1, **options)[c]
        if key not in row:  # all responses equal
            assert (got == 0).all()
            continue
        np.testing.assert_allclose(got[::-1], row[key], rtol=RTOL, atol=0)
        by_real = find(name).real
        if by_real is not None:
            got = by_real(rewards, 1, **options)[0]
            np.testing.assert_allclose(got[[0, -1]], row[key], rtol=RTOL, atol=0)


@pytest.mark.parametrize(
    "golden", load("passk_analytic")["tables"], ids=lambda t: f"{t['N']}-{t['k']}"
)
@pytest.mark.parametrize(
    ("name", "prefix"), [("passk_exceeding", "exceed_"), ("passk_combination", "comb_")]
)
def test_exceeding_and_combination(golden: dict[str, Any], name: str, prefix: str) -> None:
    got = table(name, golden["N"], golden["k"])
    for row in golden["rows"]:
        for column, key in ((1, "A_pos"), (0, "A_neg")):
            want = row[prefix + key]
            if want is not None:
                assert got[row["n_pos"], column] == pytest.approx(want, rel=RTOL, abs=0)
    assert int(eta(got).argmax()) in golden[f"argmax_{prefix}eta"]
    assert eta(got).max() == pytest.approx(golden[f"max_{prefix}eta"], rel=RTOL)


@pytest.mark.parametrize(
    "case", load("passk_continuous")["cases"], ids=lambda c: f"{len(c['rewards'])}-{c['k']}"
)
def test_analytic_of_real_rewards(case: dict[str, Any]) -> None:
    got = advantages("passk", [case["rewards"]], case["k"])[0]
    np.testing.assert_allclose(got, case["advantage"], rtol=RTOL, atol=0)


@pytest.mark.parametrize(
    "case", load("pkpo_vectors")["cases"], ids=lambda c: f"{c['name']}-{c['k']}"
)
def test_pkpo_vectors(case: dict[str, Any]) -> None:
    rewards, k = np.array([case["rewards"]]), case["k"]
    for key, name in PKPO.items():
        if case[key] is None:
            with pytest.raises(ValueError, match=r"k must be"):
                advantages(name, rewards, k)
            continue
        by_real = find(name).real
        assert by_real is not None
        for got in (advantages(name, rewards, k)[0], by_real(rewards, k)[0]):
            np.testing.assert_allclose(got, case[key], rtol=RTOL, atol=0)


@pytest.mark.parametrize(
    "row", load("pkpo_binary_closed_form"), ids=lambda r: f"{r['n']}-{r['k']}-{r['c']}"
)
def test_pkpo_binary(row: dict[str, Any]) -> None:
    for key, name in {
        "s": "pkpo_s",
        "sloo": "pkpo_sloo",
        "sloo1": "pkpo_sloo_minus_one",
        "canonical": "pkpo_centred",
    }.items():
        got = table(name, row["n"], row["k"])[row["c"]]
        if row["c"] > 0:
            assert got[1] == pytest.approx(row[f"{key}_pos"], rel=RTOL, abs=0)
        if row["c"] < row["n"]:
            assert got[0] == pytest.approx(row[f"{key}_neg"], rel=RTOL, abs=0)


@pytest.mark.parametrize(  # of the left-out row 99 % of the draws are 0: its mean is noise
    "row",
    [row for row in load("bootstrap_mc") if row["frac_all_zero"] < 0.95],
    ids=lambda r: f"{r['N']}-{r['k']}-{r['n_pos']}",
)
def test_bootstrap_means(row: dict[str, Any]) -> None:
    """Monte Carlo against Monte Carlo: within six standard errors of our own draws."""
    n, k, c, draws = row["N"], row["k"], row["n_pos"], 800
    rewards = np.tile(np.array([1.0] * c + [0.0] * (n - c)), (draws, 1))
    got = advantages("passk_bootstrap", rewards, k, seed=5)
    for part, key in ((got[:, :c], "E_pos"), (got[:, c:], "E_neg")):
        means = part.mean(axis=1)
        error = means.std() / np.sqrt(draws)
        assert abs(means.mean() - row[key]) < 6 * error + 0.02 * abs(row[key])


@pytest.mark.parametrize("row", load("snr_bernoulli"), ids=lambda r: f"{r['n']}-{r['k']}-{r['p']}")
def test_variance_of_a_bernoulli_policy(row: dict[str, Any]) -> None:
    """grad of the success chance p by its logit; sum_i A_i (y_i - p) summed over c exactly."""
    from math import comb

    n, k, p = row["n"], row["k"], row["p"]
    c = np.arange(n + 1)
    weight = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)])
    names = {"s": "pkpo_s", "sloo": "pkpo_sloo", "sloo1": "pkpo_sloo_minus_one"}
    for key, name in names.items():
        if row.get(f"{key}_var") is None:  # sloo needs k < n
            continue
        lookup = table(name, n, k)
        estimate = c * lookup[:, 1] * (1 - p) - (n - c) * lookup[:, 0] * p
        mean = float(weight @ estimate)
        assert mean == pytest.approx(row["true_grad"], rel=1e-9)
        assert float(weight @ (estimate - mean) ** 2) == pytest.approx(row[f"{key}_var"], rel=1e-6)
