"""Masked responses leave a group of n': its estimator, its limits, whose gradient it is."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from passk_fast.advantage import advantages
from passk_fast.advantage.masked import masked_advantages
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import AlgorithmConfig, RolloutConfig, RunConfig, ScheduleConfig
from passk_fast.errors import ConfigError

N = 6
RNG = np.random.default_rng(0)


def schedule(estimator: str = "passk", k: int = 3, **options: Any) -> Schedule:
    return Schedule(AlgorithmConfig(num_rollouts=N, estimator=estimator, k=k, **options), 0)


@pytest.mark.parametrize("estimator", ["passk", "pkpo_sloo_minus_one", "pkpo_s", "rloo", "maxrl"])
def test_a_group_gets_what_its_other_responses_get_alone(estimator: str) -> None:
    k = 3 if estimator.startswith("p") else 1
    rewards_PN = RNG.integers(0, 2, (40, N)).astype(float)
    masked_PN = RNG.random((40, N)) < 0.3
    got_PN = masked_advantages(schedule(estimator, k), 0, rewards_PN, masked_PN)
    assert not got_PN[masked_PN].any()
    for rewards, masked, got in zip(rewards_PN, masked_PN, got_PN, strict=True):
        kept = rewards[~masked]
        try:
            expected = advantages(estimator, kept[None], k)[0]
        except ValueError:  # fewer responses than the estimator can do with
            expected = np.zeros(len(kept))
        np.testing.assert_array_equal(got[~masked], expected)


def test_nothing_masked_changes_nothing() -> None:
    rewards_PN = RNG.integers(0, 2, (20, N)).astype(float)
    got_PN = masked_advantages(schedule(), 0, rewards_PN, np.zeros((20, N), dtype=bool))
    np.testing.assert_array_equal(got_PN, schedule().advantages(0, rewards_PN))


def test_a_group_with_fewer_responses_than_k_has_no_advantage() -> None:
    rewards_PN = np.array([[1.0, 0, 0, 0, 0, 0]] * (N + 1))
    masked_PN = np.arange(N) >= np.arange(N + 1)[:, None]  # n' = 0, 1, ... N
    got_PN = masked_advantages(schedule(k=3), 0, rewards_PN, masked_PN)
    assert got_PN.any(axis=1).tolist() == [False] * 4 + [True] * 3


def test_by_accuracy_counts_the_share_of_what_is_left() -> None:
    """Two correct of four that ended are half of them, of six a third."""
    mixed = schedule(schedule=ScheduleConfig(kind="by_accuracy", ks=(1, 2), tau=0.4))
    rewards_PN = np.array([[1.0, 1, 0, 0, 0, 0]])
    masked_PN = np.array([[False] * 4 + [True] * 2])
    got_PN = masked_advantages(mixed, 0, rewards_PN, masked_PN)
    np.testing.assert_array_equal(got_PN[:, :4], advantages("passk", rewards_PN[:, :4], 2))
    whole_PN = masked_advantages(mixed, 0, rewards_PN, ~masked_PN & masked_PN)
    np.testing.assert_array_equal(whole_PN, advantages("grpo", rewards_PN, 1))


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 4), (3, 4)])
def test_it_is_the_gradient_of_passk_given_that_responses_end(k: int, n: int) -> None:
    """Exact enumeration over a policy of three outcomes: right, wrong, cut at the limit.

    With the centred PKPO estimator, whose k/n-th part is unbiased, the expected sum of advantage
    times score over a group with n' responses that ended is n' / k times the gradient of
    1 - (1 - p)^k, p the probability of right given an end. The scores are those of the whole
    policy: its probability to end has no part in the gradient, since the advantages sum to zero.
    """
    logits = np.array([0.3, -0.4, 0.1])
    policy = np.exp(logits) / np.exp(logits).sum()
    score = np.eye(3) - policy  # of each outcome, by logit
    ends = policy[:2].sum()
    p = policy[0] / ends
    of_p = p * np.array([1 - p, -(1 - p), 0.0])  # d p / d logits
    gradient = k * (1 - p) ** (k - 1) * of_p
    algorithm = AlgorithmConfig(num_rollouts=n, estimator="pkpo_centred", k=k)
    found: dict[int, np.ndarray] = {}
    for outcomes in product(range(3), repeat=n):
        row = np.array(outcomes)
        masked_PN = (row == 2)[None]
        rewards_PN = (row == 0)[None].astype(float)
        weights = masked_advantages(Schedule(algorithm, 0), 0, rewards_PN, masked_PN)[0]
        kept = int((row != 2).sum())
        term = policy[row].prod() * (weights @ score[row])
        found[kept] = found.get(kept, np.zeros(3)) + term
    binomial = [ends**m * (1 - ends) ** (n - m) for m in range(n + 1)]
    for kept, total in found.items():
        chance = binomial[kept] * _choose(n, kept)
        expected = kept / k * gradient if kept > k else np.zeros(3)
        np.testing.assert_allclose(total / chance, expected, atol=1e-12)


def _choose(n: int, m: int) -> int:
    out = 1
    for i in range(m):
        out = out * (n - i) // (i + 1)
    return out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip_negatives": 0.1}, "flip_negatives"),
        ({"match_norm": "grpo"}, "match_norm"),
        ({"schedule": ScheduleConfig(kind="adaptive", ks=(1, 3))}, "adaptive"),
        ({"estimator": "passk_bootstrap"}, "bootstrap"),
    ],
)
def test_masks_are_refused_where_groups_depend_on_each_other(
    options: dict[str, Any], words: str
) -> None:
    mask = RolloutConfig(truncated="mask")
    with pytest.raises(ConfigError, match=rf"rollout\.truncated = 'mask' does not .*{words}"):
        schedule(**options).check_rollout(mask)
    schedule().check_rollout(mask)


def test_masks_are_refused_with_early_stop() -> None:
    algorithm = AlgorithmConfig(loss_denominator="sequences")
    rollout = {"early_stop": True, "max_response_tokens": 8}
    RunConfig(rollout=RolloutConfig(truncated="zero", **rollout), algorithm=algorithm)
    with pytest.raises(ConfigError, match=r"early_stop with rollout\.truncated = 'mask'"):
        RunConfig(rollout=RolloutConfig(truncated="mask", **rollout), algorithm=algorithm)
