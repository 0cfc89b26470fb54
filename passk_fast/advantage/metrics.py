"""Unbiased pass@k and intervals for what is reported about held-out prompts."""

from __future__ import annotations

import math

import numpy as np

from passk_fast.advantage.subsets import some_success

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


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

    Keys: "k", "prompts", "rollouts", and "pass@1", "pass@k", each also with "_low" and "_high".

    Raises:
        ValueError: no prompts, or as `pass_at_k`.
    """
    num_prompts = len(correct_P)
    if num_prompts == 0:
        raise ValueError("correct is empty: there are no prompts to evaluate.")
    out: dict[str, float] = {"k": k, "prompts": num_prompts, "rollouts": n}
    for name, draws in (("pass@1", 1), ("pass@k", k)):
        mean = float(pass_at_k(correct_P, n, draws).mean())
        out[name] = mean
        out[f"{name}_low"], out[f"{name}_high"] = wilson(mean, num_prompts)
    return out
