"""PKPO's one-dimensional toy (arXiv 2505.15201): x ~ N(theta, 0.1), g(x) = x^2 on [0, 1], else 0.

Exact by quadrature: E[max of k] as a function of theta, its maximiser, its gradient. By Monte Carlo
with standard errors: mean and variance of the gradient estimates of s, sloo, sloo_minus_one, the
centred form, and of one best-of-k group a batch, at n = 16 for every k. 0.1 is read as the standard
deviation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from passk_fast.advantage import advantages

SIGMA, N = 0.1, 16
NAMES = ("pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred")
KS = (1, 2, 4, 8, 16)


def reward(x: np.ndarray) -> np.ndarray:
    """g."""
    return np.where((x >= 0) & (x <= 1), x * x, 0.0)


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _at_most(theta: float, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F(root) = P(g <= root^2) and its derivative by theta, on a grid of roots in [0, 1]."""
    low, up = (root - theta) / SIGMA, (1.0 - theta) / SIGMA
    beyond = _normal_cdf(np.full_like(root, up)) - _normal_cdf(low)  # P(root < x <= 1)
    slope = (_density(low) - _density(np.full_like(root, up))) / SIGMA  # d beyond / d theta
    return 1 - beyond, -slope


def expected_max(theta: float, k: int, points: int = 4001) -> tuple[float, float]:
    """(E[max of k], its derivative by theta): the integral over u of 1 - F(u)^k, u = root^2."""
    root = np.linspace(0.0, 1.0, points)
    share, slope = _at_most(theta, root)
    value = np.trapezoid((1 - share**k) * 2 * root, root)
    gradient = np.trapezoid(-k * share ** (k - 1) * slope * 2 * root, root)
    return float(value), float(gradient)


def best_theta(k: int) -> float:
    """The maximiser of E[max of k], by bisection of the derivative."""
    low, high = 0.3, 1.3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_max(middle, k)[1] > 0 else (low, middle)
    return (low + high) / 2


def estimates(name: str, k: int, theta: float, draws: int, seed: int) -> np.ndarray:
    """float64 [draws]: gradient estimates by theta of one batch of n = 16 each."""
    x = theta + SIGMA * np.random.default_rng(seed).standard_normal((draws, N))
    values = advantages(name, reward(x), k)
    if name == "pkpo_centred":
        values = values * (k / N)
    return (values * (x - theta) / SIGMA**2).sum(axis=1)


def single_groups(k: int, theta: float, draws: int, seed: int) -> np.ndarray:
    """The naive estimate: floor(n / k) groups, each member gets its group's largest reward."""
    x = theta + SIGMA * np.random.default_rng(seed).standard_normal((draws, N))
    count = N // k
    used = x[:, : count * k].reshape(draws, count, k)
    best = reward(used).max(axis=2)
    return (best * ((used - theta) / SIGMA**2).sum(axis=2)).mean(axis=1)


def run(draws: int = 100_000, theta: float = 0.5) -> dict[str, Any]:
    """Everything for the figure, as JSON values."""
    thetas = np.linspace(0.0, 1.2, 121)
    curves = {str(k): [expected_max(float(t), k)[0] for t in thetas] for k in KS}
    variance: list[dict[str, Any]] = []
    for k in range(1, N + 1):
        exact = expected_max(theta, k)[1]
        for name in (*NAMES, "naive"):
            if (name in ("pkpo_sloo", "pkpo_centred") and k == N) or (
                name == "pkpo_sloo_minus_one" and k == 1
            ):
                continue
            got = (
                single_groups(k, theta, draws, seed=k)
                if name == "naive"
                else estimates(name, k, theta, draws, seed=k)
            )
            variance.append(
                {
                    "estimator": name,
                    "k": k,
                    "mean": float(got.mean()),
                    "mean_se": float(got.std(ddof=1) / math.sqrt(draws)),
                    "exact": exact,
                    "variance": float(got.var(ddof=1)),
                    "variance_se": float(np.sqrt(((got - got.mean()) ** 2).var(ddof=1) / draws)),
                }
            )
    return {
        "sigma": SIGMA,
        "n": N,
        "theta_of_the_variances": theta,
        "draws": draws,
        "thetas": thetas.tolist(),
        "expected_max": curves,
        "best_theta": {str(k): best_theta(k) for k in KS},
        "variance": variance,
    }
