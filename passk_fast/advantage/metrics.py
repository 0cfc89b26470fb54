"""Unbiased pass@k, its errors, and what else is reported about groups of rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from passk_fast.advantage.subsets import some_success
from passk_fast.data.types import Prompt, RolloutGroup

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN where there is no whole: 0 would read as a measurement."""
    return part / whole if whole else math.nan


def mean(values: ArrayLike) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if known.size else math.nan


def pass_at_k(correct_P: np.ndarray, n: int, k: int) -> np.ndarray:
    """Unbiased pass@k of each prompt, float64 [P]: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374).

    Raises:
        ValueError: k outside 1..n, or a count that is outside 0..n or not whole.
    """
    counts = np.asarray(correct_P)
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}.")
    if not (np.isfinite(counts) & (counts == np.floor(counts))).all():
        raise ValueError("correct must hold whole numbers.")
    correct = counts.astype(np.int64)
    if correct.size and not 0 <= correct.min() <= correct.max() <= n:
        raise ValueError(f"correct must be between 0 and n = {n}.")
    return some_success(n, k)[correct]


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % binomial interval of an observed share of `trials` (need not be whole).

    Raises:
        ValueError: share outside [0, 1] or trials not positive.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    if not trials > 0:
        raise ValueError(f"trials must be positive, got {trials}.")
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluation(correct_P: np.ndarray, n: int, k: int) -> dict[str, float]:
    """pass@1 and pass@k of P prompts with n responses each, with 95 % intervals.

    Both intervals are Wilson's on the number of prompts, not of samples: responses to one prompt
    are not independent, so P is the honest (and for pass@1 the wider) count of trials. It is
    conservative: a prompt's score in [0, 1] with mean p varies by p (1 - p) at most.

    Keys: "k", "prompts", "rollouts", and "pass@1", "pass@k", each also with "_low" and "_high";
    and those of `pass_at_powers`.

    Raises:
        ValueError: no prompts, or as `pass_at_k`.
    """
    num_prompts = len(correct_P)
    if num_prompts == 0:
        raise ValueError("correct is empty: there are no prompts to evaluate.")
    out: dict[str, float] = {"k": k, "prompts": num_prompts, "rollouts": n}
    out |= pass_at_powers(correct_P, n)
    for name, samples in (("pass@1", 1), ("pass@k", k)):
        mean = float(pass_at_k(correct_P, n, samples).mean())
        out[name] = mean
        out[f"{name}_low"], out[f"{name}_high"] = wilson(mean, num_prompts)
    return out


def max_at_k(rewards_PN: np.ndarray, k: int) -> np.ndarray:
    """Unbiased max@k of each prompt, float64 [P]: the mean, over all sets of k of its N responses,
    of the set's largest reward; with rewards of 0 and 1 it is pass@k.

    In ascending order the i-th reward (from 1) is the largest of C(i - 1, k - 1) of the C(N, k)
    sets (PKPO, arXiv 2505.15201, equation 22).

    Raises:
        ValueError: k outside 1..N.
    """
    n = rewards_PN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}.")
    sets = math.comb(n, k)
    weights_N = np.array([math.comb(i - 1, k - 1) / sets for i in range(1, n + 1)])
    return np.asarray(np.sort(rewards_PN, axis=1) @ weights_N, dtype=np.float64)


def is_real(rewards_PN: np.ndarray) -> bool:
    """Whether a reward is neither 0 nor 1 (nor missing)."""
    known = rewards_PN[~np.isnan(rewards_PN)]
    return not np.isin(known, (0.0, 1.0)).all()


def real_evaluation(rewards_PN: np.ndarray, k: int) -> dict[str, float]:
    """What `evaluation` cannot say about real rewards [P, N]: "mean_reward", "max@k" and for every
    power of two "max@2", ..., each with "_se" as in `pass_at_powers`; empty for rewards 0 and 1."""
    if not is_real(rewards_PN):
        return {}
    num_prompts, n = rewards_PN.shape
    out = {"max@k": float(max_at_k(rewards_PN, k).mean())}
    for power in powers_of_two(n):
        scores_P = max_at_k(rewards_PN, power)
        name = "mean_reward" if power == 1 else f"max@{power}"
        out[name] = float(scores_P.mean())
        deviation = float(scores_P.std(ddof=1)) if num_prompts > 1 else math.nan
        out[f"{name}_se"] = deviation / math.sqrt(num_prompts)
    return out


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n. Example: 12 -> [1, 2, 4, 8]."""
    return [1 << i for i in range(n.bit_length())]


def pass_at_powers(correct_P: np.ndarray, n: int) -> dict[str, float]:
    """Mean unbiased pass@k over prompts for every power of two k up to n, and standard errors.

    Keys "pass@1", "pass@1_se", "pass@2", ... The error is that of the mean over P prompts, the
    sample deviation over sqrt(P); with one prompt it is NaN. It covers the choice of
    prompts and of samples.
    """
    out: dict[str, float] = {}
    for k in powers_of_two(n):
        scores_P = pass_at_k(correct_P, n, k)
        out[f"pass@{k}"] = float(scores_P.mean())
        error = scores_P.std(ddof=1) / math.sqrt(len(scores_P)) if len(scores_P) > 1 else math.nan
        out[f"pass@{k}_se"] = float(error)
    return out


def group_metrics(
    groups: Sequence[RolloutGroup],
    advantages_PN: np.ndarray,
    zero_advantage_rows: np.ndarray,
    k: int,
    answer_of: Callable[[Prompt, str], str],
    *,
    masks_truncated: bool = False,
) -> dict[str, object]:
    """What a step reports about its groups of N rollouts each.

    A group with NaN among its rewards was stopped early: it is censored, and its number of correct
    responses a lower bound. Then every pass@k is one too, and "pass@1_high", "pass@k_high" are the
    upper bounds; the reward is over what was sampled.

    Args:
        advantages_PN: what the step trained on.
        zero_advantage_rows: bool [N + 1], by the number of correct responses.
        k: of the record's "pass@k".
        answer_of: the answer to a prompt inside a response, to distinguish wrong ones.
        masks_truncated: responses that were cut have no part in the advantages; everywhere else
            they count as wrong.

    Returns:
        "reward", "pass@k" and `pass_at_powers`; "correct_histogram", whole groups by number of
        correct responses, int [N + 1], and "censored_histogram" of the others by those seen;
        with rewards other than 0 and 1, `real_evaluation` of the whole groups;
        "censored_share"; "zero_advantage_share" of prompts; "effective_batch", sequences with
        non-zero advantage; "policy_entropy" in nats per token; "wrong_distinct_share".
    """
    rewards_PN = np.stack([group.rewards for group in groups])
    n = rewards_PN.shape[1]
    correct_P = (rewards_PN == 1.0).sum(axis=1)
    missing_P = np.isnan(rewards_PN).sum(axis=1)
    censored_P = missing_P > 0
    by_advantage_P = np.array([is_real(rewards_PN[[p]]) for p in range(len(groups))])
    if masks_truncated:
        by_advantage_P |= [any(group.truncated) for group in groups]
    # the rows are those of a table for N rewards of 0 and 1
    zero_P = np.where(by_advantage_P, ~advantages_PN.any(axis=1), zero_advantage_rows[correct_P])
    zero_P = zero_P | censored_P
    whole = [group for group, censored in zip(groups, censored_P, strict=True) if not censored]
    return {
        "reward": mean(rewards_PN),
        "pass@k": float(pass_at_k(correct_P, n, k).mean()),
        "pass@k_high": float(pass_at_k(correct_P + missing_P, n, k).mean()),
        "pass@1_high": float((correct_P + missing_P).mean() / n),
        **pass_at_powers(correct_P, n),
        **real_evaluation(rewards_PN[~censored_P], k),
        "correct_histogram": np.bincount(correct_P[~censored_P], minlength=n + 1).tolist(),
        "censored_histogram": np.bincount(correct_P[censored_P], minlength=n + 1).tolist(),
        "censored_share": float(censored_P.mean()),
        "zero_advantage_share": float(zero_P.mean()),
        "effective_batch": int(np.count_nonzero(advantages_PN)),
        "policy_entropy": mean(sampled_entropy(groups)),
        "wrong_distinct_share": wrong_distinct_share(whole, answer_of),
    }


def wrong_distinct_share(
    groups: Sequence[RolloutGroup], answer_of: Callable[[Prompt, str], str]
) -> float:
    """Distinct answers among a prompt's wrong responses, over their number; the mean over prompts.

    Source: the diversity of wrong answers in arXiv 2508.10751, section 4. Prompts with fewer than
    two wrong responses say nothing and are left out; NaN where none is left. The share depends on
    how many wrong responses there are, so compare it at like accuracy.
    """
    shares = []
    for group in groups:
        wrong = [
            answer_of(group.prompt, rollout.text)
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
            if reward < 1.0
        ]
        if len(wrong) >= 2:
            shares.append(len(set(wrong)) / len(wrong))
    return float(np.mean(shares)) if shares else math.nan


def sampled_entropy(groups: Sequence[RolloutGroup]) -> np.ndarray:
    """Mean token entropy of each prompt's responses in nats, float64 [P], from its samples.

    -log p of a sampled token is an unbiased estimate of the entropy of the distribution that it
    was drawn from (rollout temperature, top_p 1), so its mean over all tokens of N responses needs
    no further pass through the model. NaN for a prompt without a token.
    """
    return np.array(
        [-mean(np.concatenate([r.logprobs for r in group.rollouts])) for group in groups]
    )
