"""Estimators given by their table A[c, correct], float64 [n + 1, 2], of binary rewards.

Row c correct of n, column 0 wrong, 1 correct; a response that cannot exist has 0. nn = n - c is the
number of wrong responses. "Scale" is relative to grad pass@k (pass@1 where there is no k), with the
gradient estimate (1 / n) sum_i A_i grad log pi(y_i).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from passk_fast.advantage.subsets import SMALLEST, Floats, some_success


def _two_values(correct_C: Floats) -> Floats:
    """The table of a centred estimator from A_correct at c = 1..n - 1: A_wrong = -(c / nn) A."""
    n = len(correct_C) + 1
    c = np.arange(1, n)
    out = np.zeros((n + 1, 2))
    out[1:n, 1] = correct_C
    out[1:n, 0] = -(c / (n - c)) * correct_C
    return out


def grpo(n: int, k: int, *, ddof: float = 0) -> Float64[Floats, "{n+1} 2"]:
    """A_i = (r_i - mean) / std, `ddof` 0 (population, the default) or 1 (sample): A_correct =
    sqrt(nn / c), at ddof 1 times sqrt((n - 1) / n).

    Source: Pass@k Training, arXiv 2508.10751, Eq. 3 (GRPO, arXiv 2402.03300). It has no k. Not
    unbiased for any pass@k: it is grad pass@1 with each prompt weighted by 1 / std. Centred.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}.")
    out = passk(n, 1)
    return out * math.sqrt((n - 1) / n) if ddof else out


def passk(n: int, k: int) -> Float64[Floats, "{n+1} 2"]:
    """Analytic Pass@k: A_correct = sqrt(q / (1 - q)), A_wrong = -(c / nn) A_correct, with
    q = C(nn, k) / C(n, k). Source: Pass@k Training, arXiv 2508.10751, Eq. 11-15.

    The mean over all C(n - 1, k - 1) groups that hold i of (group reward - rho) / sigma. Zero
    exactly where c = 0 or nn < k, so everywhere at k = n. k = 1 is GRPO. Biased: before the
    division by sigma it is (1 - k / n) times grad pass@k: the step shrinks as k nears n. Centred.
    """
    failure = some_success(n, k)
    correct = np.zeros(n - 1)
    root_q = 1.0  # sqrt(q[c]) by recurrence: q itself underflows from about n = 1030, k = n / 2
    for c in range(1, n - k + 1):
        root_q *= math.sqrt((n - c + 1 - k) / (n - c + 1))
        correct[c - 1] = max(root_q / math.sqrt(failure[c]), SMALLEST)
    return _two_values(correct)


def exceeding(n: int, k: int) -> Float64[Floats, "{n+1} 2"]:
    """A' = f(c) A_passk, f(c) = 4 / (10 ln(c + 0.5)). Source: arXiv 2508.10751, Eq. 17.

    The base of the logarithm is not stated; the natural one is a reading, f(1) = 0.9865. At c = 0
    A is 0 and f is not used. Biased; scale that of `passk` times f(c). Centred.
    """
    out = passk(n, k)
    c = np.arange(1, n + 1)
    out[1:] *= (4 / (10 * np.log(c + 0.5)))[:, None]
    return out


def combination(n: int, k: int) -> Float64[Floats, "{n+1} 2"]:
    """A = (c / n) A_passk + (1 - c / n) A_pass1. Source: arXiv 2508.10751, Eq. 18.

    Biased, between GRPO on hard prompts and Pass@k on easy ones; alive for 1 <= c <= n - 1.
    Centred.
    """
    share = (np.arange(n + 1) / n)[:, None]
    return share * passk(n, k) + (1 - share) * passk(n, 1)


def _most_correct(tau: float, n: int) -> int:
    """The largest c with c / n <= tau, safe against rounding of tau * n."""
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be between 0 and 1, got {tau}.")
    return math.floor(tau * n + 1e-9)


def pass1_no_easy(n: int, k: int, *, tau: float = 0.5) -> Float64[Floats, "{n+1} 2"]:
    """A = A_pass1 where c / n <= tau, else 0: Pass@1 without easy problems.

    A reading of arXiv 2508.10751, Fig. 18a: the paper prints no formula and no threshold. It has
    no k. Biased. Centred.
    """
    out = passk(n, 1)
    out[_most_correct(tau, n) + 1 :] = 0.0
    return out


def piecewise(n: int, k: int, *, tau: float = 0.5) -> Float64[Floats, "{n+1} 2"]:
    """A = A_pass1 where c / n <= tau, else A_passk.

    A reading of arXiv 2508.10751, Fig. 18b: the paper prints no formula and no threshold. Biased.
    Centred.
    """
    cut = _most_correct(tau, n) + 1
    return np.concatenate((passk(n, 1)[:cut], passk(n, k)[cut:]))


def maxrl(n: int, k: int) -> Float64[Floats, "{n+1} 2"]:
    """A_i = (r_i - mean) / mean: A_correct = nn / c, A_wrong = -1, and 0 at c = 0.

    Source: MaxRL, arXiv 2602.02710. It has no k: (1 / n) sum A grad log pi is unbiased for
    sum_{k=1}^{n-1} (1 / k) grad pass@k, which nears grad log pass@1 as n grows. sqrt(nn / c)
    times GRPO. Centred. Binary rewards only; `tailrl` takes real ones.
    """
    c = np.arange(1, n)
    return _two_values((n - c) / c)


def f_grpo(n: int, k: int, *, gamma: float = 1.0) -> Float64[Floats, "{n+1} 2"]:
    """A = (1 - c / n)^gamma A_grpo, gamma >= 0.

    Source: F-GRPO, arXiv 2602.06717 (g(x) = (1 - mean reward)^gamma). gamma = 1 is our default.
    It has no k. Biased; gamma = 0.5 is proportional to A_correct = nn / sqrt(n c). Centred.
    """
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be 0 or more, got {gamma}.")
    return passk(n, 1) * ((1 - np.arange(n + 1) / n) ** gamma)[:, None]


def check_beta(beta: float) -> None:
    """ValueError unless the option `beta` of `rs_grpo` is positive and finite."""
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be above 0, got {beta}.")


def rs_grpo(n: int, k: int, *, beta: float = 2.0) -> Float64[Floats, "{n+1} 2"]:
    """A_i = (e^{beta r_i} / mean_j e^{beta r_j} - 1) / beta, beta > 0.

    Source: RS-GRPO, arXiv 2509.24261, the sample form of the gradient of
    (1 / beta) log E[e^{beta r}], which goes from the mean (beta -> 0) to the largest reward. It has
    no k. Biased at finite n (a ratio of means). Centred. With x = e^-beta:
    A_correct = nn (1 - x) / ((c + nn x) beta).
    """
    check_beta(beta)
    c = np.arange(1, n)
    x = math.exp(-beta)
    return _two_values((n - c) * -math.expm1(-beta) / ((c + (n - c) * x) * beta))
