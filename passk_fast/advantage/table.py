"""Binary-reward estimators as tables: A[c, correct] for c = 0..N correct responses of N.

Source: Pass@k Training, arXiv 2508.10751, Eq. 11-15. With nn = N - c wrong responses and
q = C(nn, k) / C(N, k) the chance that k of the N responses hold no correct one,
    A_correct = sqrt(q / (1 - q)),   A_wrong = -(c / nn) * A_correct,
which is zero exactly where c = 0 or nn < k. k = 1 is GRPO with the population standard deviation.
"""

from __future__ import annotations

import difflib
import math
from functools import lru_cache

import numpy as np

ESTIMATORS = ("passk", "grpo")
_SMALLEST = float(np.finfo(np.float64).tiny)
"""A live row is never zero: an A_correct too small for float64 is held here (N > 2000 only)."""


def no_success(n: int, k: int) -> np.ndarray:
    """q[c] = C(n - c, k) / C(n, k), float64 [n + 1]: none of k draws from n is one of c correct.

    The recurrence q[c + 1] = q[c] * (n - c - k) / (n - c) neither overflows nor cancels.
    """
    q = np.ones(n + 1)
    for c in range(n):
        q[c + 1] = q[c] * max(0, n - c - k) / (n - c)
    return q


def _failure(n: int, k: int) -> np.ndarray:
    """1 - q without cancellation where q is near 1, float64 [n + 1].

    C(n, k) - C(n - c, k) is the sum of C(n - j, k - 1) over j = 1..c; term j over C(n, k) is
    q[j - 1] * k / (n - j + 1).
    """
    q = no_success(n, k)
    steps = q[:-1] * k / (n - np.arange(n))
    return np.concatenate(([0.0], np.cumsum(steps)))


def _check(estimator: str, n: int, k: int) -> None:
    if estimator not in ESTIMATORS:
        near = difflib.get_close_matches(estimator, ESTIMATORS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"estimator {estimator!r} is unknown; known: {', '.join(ESTIMATORS)}.{hint}"
        )
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}.")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}.")
    if estimator == "grpo" and k != 1:
        raise ValueError(f"estimator 'grpo' is the k = 1 case, got k = {k}.")


@lru_cache(maxsize=64)
def _table(estimator: str, n: int, k: int) -> np.ndarray:
    _check(estimator, n, k)
    failure = _failure(n, k)
    out = np.zeros((n + 1, 2))
    root_q = 1.0  # sqrt(q[c]) by recurrence: q itself underflows from about N = 1030, k = N / 2
    for c in range(1, n - k + 1):  # elsewhere the table is zero, decided on integers
        root_q *= math.sqrt((n - c + 1 - k) / (n - c + 1))
        out[c, 1] = max(root_q / math.sqrt(failure[c]), _SMALLEST)
        out[c, 0] = -(c / (n - c)) * out[c, 1]
    out.setflags(write=False)
    return out


def table(estimator: str, n: int, k: int) -> np.ndarray:
    """The estimator's table, float64 [n + 1, 2]: row c correct of n, column 0 wrong, 1 correct.

    A response that cannot exist (a correct one at c = 0, a wrong one at c = n) has 0. Read-only.
    Relative error below 1e-12 to n = 4096, but for values under 2.2e-308, which are held there.

    Raises:
        ValueError: unknown estimator, n < 2, k outside 1..n, or k != 1 for 'grpo'.
    """
    return _table(estimator, n, k)


def advantages(estimator: str, rewards_PN: np.ndarray, k: int) -> np.ndarray:
    """Advantages, float64 [P, N], of binary rewards [P, N].

    Raises:
        ValueError: rewards are not two-dimensional, or hold a value other than 0 and 1.
    """
    rewards = np.asarray(rewards_PN, dtype=np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [P, N], got shape {rewards.shape}.")
    if not np.isin(rewards, (0.0, 1.0)).all():
        bad = rewards[~np.isin(rewards, (0.0, 1.0))][0]
        raise ValueError(f"estimator {estimator!r} needs rewards of 0 or 1, got {bad}.")
    correct = rewards.astype(np.int64)
    lookup = table(estimator, rewards.shape[1], k)
    return lookup[correct.sum(axis=1)[:, None], correct]


def dead_rows(estimator_table: np.ndarray) -> np.ndarray:
    """bool [n + 1]: counts c at which no response has a gradient."""
    return (estimator_table == 0.0).all(axis=1)


def eta(estimator_table: np.ndarray) -> np.ndarray:
    """Sum of |advantage| over a group, float64 [n + 1] (the paper's eta)."""
    n = len(estimator_table) - 1
    c = np.arange(n + 1)
    return c * np.abs(estimator_table[:, 1]) + (n - c) * np.abs(estimator_table[:, 0])
