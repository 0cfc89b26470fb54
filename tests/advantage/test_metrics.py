"""Unbiased pass@k and the intervals of an evaluation."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.advantage import evaluation, pass_at_k, wilson
from passk_fast.advantage.metrics import (
    group_metrics,
    max_at_k,
    pass_at_powers,
    real_evaluation,
    sampled_entropy,
    wrong_distinct_share,
)
from passk_fast.data.types import Prompt, Rollout, RolloutGroup


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int) -> None:
    for k in range(1, n + 1):
        subsets = list(combinations(range(n), k))
        want = [sum(min(s) < c for s in subsets) / len(subsets) for c in range(n + 1)]
        np.testing.assert_allclose(pass_at_k(np.arange(n + 1), n, k), want, rtol=1e-13, atol=1e-16)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_pass_at_k_grows_from_0_to_1(size: tuple[int, int]) -> None:
    n, k = size
    got = pass_at_k(np.arange(n + 1), n, k)
    assert got[0] == 0.0
    assert (got[n - k + 1 :] == 1.0).all()
    assert (np.diff(got) >= 0).all()


def test_pass_at_k_of_large_n_matches_exact_integers() -> None:
    n, k, c = 4096, 1500, 3
    want = float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))
    assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(want, rel=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """E over c ~ Binomial(n, p) is 1 - (1 - p)^k, by exact enumeration."""
    n, k, p = 10, 4, 0.3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert np.dot(weights, pass_at_k(np.arange(n + 1), n, k)) == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(
    ("correct", "n", "k", "words"),
    [
        ([1], 4, 0, "k must be"),
        ([1], 4, 5, "k must be"),
        ([5], 4, 2, "correct must be between"),
        ([-1], 4, 2, "correct must be between"),
        ([1.5], 4, 2, "whole numbers"),
        ([math.nan], 4, 2, "whole numbers"),
    ],
)
def test_bad_counts(correct: list[float], n: int, k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pass_at_k(np.array(correct), n, k)


def test_wilson_solves_its_equation() -> None:
    """The ends are where |p - share| is z standard errors of p (Wilson 1927)."""
    z = 1.959963984540054
    for share, trials in ((0.0, 10.0), (0.3, 10.0), (0.5, 1.0), (1.0, 40.0), (0.017, 512.5)):
        low, high = wilson(share, trials)
        assert 0 <= low <= share <= high <= 1
        for end in (low, high):
            assert (end - share) ** 2 == pytest.approx(
                z * z * end * (1 - end) / trials, rel=1e-9, abs=1e-15
            )


@pytest.mark.parametrize(
    ("share", "trials"), [(-0.1, 5.0), (1.1, 5.0), (math.nan, 5.0), (0.5, 0.0)]
)
def test_wilson_refuses(share: float, trials: float) -> None:
    with pytest.raises(ValueError, match=r"share|trials"):
        wilson(share, trials)


def test_evaluation() -> None:
    got = evaluation(np.array([0, 4, 8, 8]), 8, 4)
    assert (got["k"], got["prompts"], got["rollouts"]) == (4, 4, 8)
    assert got["pass@1"] == pytest.approx(20 / 32)
    assert got["pass@k"] == pytest.approx((0 + 69 / 70 + 1 + 1) / 4)
    for name in ("pass@1", "pass@k"):
        assert (got[f"{name}_low"], got[f"{name}_high"]) == wilson(got[name], 4)


def test_interval_covers_under_clustering() -> None:
    """Prompts are all right or all wrong: an interval on P x n samples would miss often."""
    rng = np.random.default_rng(0)
    p, num_prompts, n, runs = 0.4, 64, 16, 400
    hits = {"prompts": 0, "samples": 0}
    for _ in range(runs):
        correct = n * (rng.random(num_prompts) < p)
        got = evaluation(correct, n, 4)
        hits["prompts"] += got["pass@1_low"] <= p <= got["pass@1_high"]
        low, high = wilson(got["pass@1"], num_prompts * n)
        hits["samples"] += low <= p <= high
    assert hits["prompts"] / runs > 0.92
    assert hits["samples"] / runs < 0.6


def test_evaluation_without_prompts() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        evaluation(np.array([], dtype=np.int64), 8, 4)


def test_pass_at_powers_and_their_errors() -> None:
    counts, n = np.array([0, 1, 3, 12]), 12
    got = pass_at_powers(counts, n)
    assert sorted(got) == sorted(f"pass@{k}{part}" for k in (1, 2, 4, 8) for part in ("", "_se"))
    for k in (1, 2, 4, 8):
        scores = pass_at_k(counts, n, k)
        assert got[f"pass@{k}"] == pytest.approx(scores.mean())
        assert got[f"pass@{k}_se"] == pytest.approx(scores.std(ddof=1) / 2)
    assert math.isnan(pass_at_powers(counts[:1], n)["pass@1_se"])


def group(texts: list[str], rewards: list[float]) -> RolloutGroup:
    """Responses of two tokens with log-probs -1 and -3."""
    rollouts = tuple(
        Rollout(token_ids=(1, 2), logprobs=(-1.0, -3.0), text=text, finished=True) for text in texts
    )
    prompt = Prompt(id="p", text="", answer="", task="exact")
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1,), rollouts=rollouts, rewards=np.array(rewards, dtype=float)
    )


def whole_text(prompt: Prompt, text: str) -> str:
    """An answer that is the response itself."""
    return text


def test_distinct_wrong_answers() -> None:
    same = group(["a", "a", "a", "b"], [0, 0, 0, 1])
    different = group(["a", "b", "c", "c"], [0, 0, 0, 1])
    assert wrong_distinct_share([same], whole_text) == pytest.approx(1 / 3)
    assert wrong_distinct_share([same, different], whole_text) == pytest.approx(2 / 3)
    one_answer = wrong_distinct_share([different], lambda prompt, text: prompt.task)
    assert one_answer == pytest.approx(1 / 3)
    one_wrong_response = group(["a", "b"], [0, 1])
    assert math.isnan(wrong_distinct_share([one_wrong_response], whole_text))


def test_entropy_from_samples() -> None:
    np.testing.assert_allclose(sampled_entropy([group(["a", "b"], [0, 1])]), [2.0])


def test_group_metrics_mark_what_is_censored() -> None:
    groups = [
        group(["x", "y", "z", "z"], [1, 0, 0, 0]),
        group(["x", "x", "x", "x"], [1, 1, 1, 1]),
        group(["x", "x", "x", ""], [1, 1, 1, math.nan]),
    ]
    zero_advantage_rows = np.array([True, False, False, True, True])
    advantages_PN = np.array([[1.0, -0.5, -0.5, 0.0], [0.0] * 4, [0.0] * 4])
    record = group_metrics(groups, advantages_PN, zero_advantage_rows, 2, whole_text)
    assert record["correct_histogram"] == [0, 1, 0, 0, 1]
    assert record["censored_histogram"] == [0, 0, 0, 1, 0]
    assert record["censored_share"] == pytest.approx(1 / 3)
    assert record["zero_advantage_share"] == pytest.approx(2 / 3)
    assert record["effective_batch"] == 3
    assert record["reward"] == pytest.approx(8 / 11)
    assert record["pass@1"] == pytest.approx(8 / 12)
    assert record["pass@1_high"] == pytest.approx(9 / 12)
    assert record["pass@k"] == record["pass@2"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert record["wrong_distinct_share"] == pytest.approx(2 / 3)
    assert record["policy_entropy"] == pytest.approx(2.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=7), st.data())
def test_max_at_k_is_the_mean_over_all_sets(rewards: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    sets = list(combinations(rewards, k))
    want = sum(map(max, sets)) / len(sets)
    (got,) = max_at_k(np.array([rewards]), k)
    assert got == pytest.approx(want, abs=1e-12)


def test_max_at_k_of_binary_rewards_is_pass_at_k() -> None:
    rewards_PN = np.array([[1.0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    for k in range(1, 5):
        want = pass_at_k(rewards_PN.sum(axis=1), 4, k)
        np.testing.assert_allclose(max_at_k(rewards_PN, k), want, atol=1e-15)
    with pytest.raises(ValueError, match="between 1 and n = 4"):
        max_at_k(rewards_PN, 5)


def test_only_real_rewards_are_reported_as_such() -> None:
    assert real_evaluation(np.array([[1.0, 0.0]]), 2) == {}
    record = real_evaluation(np.array([[0.5, 0.0], [1.0, 0.5]]), 2)
    assert (record["mean_reward"], record["max@2"], record["max@k"]) == (0.5, 0.75, 0.75)
    assert record["max@2_se"] == pytest.approx(0.25)
