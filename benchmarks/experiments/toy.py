"""PKPO's one-dimensional toy (arXiv 2505.15201): x ~ N(theta, 0.1), g(x) = x^2 on [0, 1], else 0.

Exact by quadrature: E[max of k] as a function of theta, its maximiser, its gradient; mean and
variance of the gradient estimates of s, sloo, sloo_minus_one, the centred form, and of separate
groups of k, at n = 16 for every k. 0.1 is read as the standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from passk_fast.advantage import advantages, table

SIGMA, N = 0.1, 16
NAMES = ("pkpo_s", "pkpo_sloo", "pkpo_sloo_minus_one", "pkpo_centred")
KS = (1, 2, 4, 8, 16)
THETAS = (0.5, 0.9)
"""Where the variances are taken: far from the edge of the reward, and near it."""


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


def expected_max(theta: float, k: int, points: int = 200) -> tuple[float, float]:
    """(E[max of k], its derivative by theta): the integral over u of 1 - F(u)^k, u = root^2."""
    root, weights = np.polynomial.legendre.leggauss(points)
    root, weights = (root + 1) / 2, weights / 2
    share, slope = _at_most(theta, root)
    value = ((1 - share**k) * 2 * root * weights).sum()
    gradient = (-k * share ** (k - 1) * slope * 2 * root * weights).sum()
    return float(value), float(gradient)


def best_theta(k: int) -> float:
    """The maximiser of E[max of k], by bisection of the derivative."""
    low, high = 0.3, 1.3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_max(middle, k)[1] > 0 else (low, middle)
    return (low + high) / 2


def estimates(name: str, k: int, theta: float, draws: int, seed: int) -> np.ndarray:
    """float64 [draws]: gradient estimates by theta of a batch of n = 16 each; checks `moments`."""
    x = theta + SIGMA * np.random.default_rng(seed).standard_normal((draws, N))
    values = advantages(name, reward(x), k) * _scale(name, k)
    return (values * (x - theta) / SIGMA**2).sum(axis=1)


def _scale(name: str, k: int) -> float:
    return k / N if name == "pkpo_centred" else 1.0


@dataclass(frozen=True, kw_only=True)
class Band:
    """The part of the line where low < g(x) <= high; float64 arrays over a grid of borders."""

    share: np.ndarray
    """P(band)."""
    mean: np.ndarray
    """E[z | band], z = (x - theta) / sigma."""
    square: np.ndarray
    """E[z^2 | band]."""


def _band(theta: float, low: np.ndarray | None, high: np.ndarray | None) -> Band:
    """Roots of the rewards at the borders; low None: everything up to `high`, rewards of 0 too."""

    def above(root: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P, E[z; .] and E[z^2; .] of root < x <= 1."""
        a, b = (root - theta) / SIGMA, np.full_like(root, (1.0 - theta) / SIGMA)
        p = _normal_cdf(b) - _normal_cdf(a)
        return p, _density(a) - _density(b), p + a * _density(a) - b * _density(b)

    assert low is not None or high is not None
    outside: tuple[Any, ...] = (1.0, 0.0, 1.0) if low is None else above(low)
    beyond: tuple[Any, ...] = (0.0, 0.0, 0.0) if high is None else above(high)
    p, first, second = (x - y for x, y in zip(outside, beyond, strict=True))
    some = np.asarray(p > 1e-14)  # below, a difference of two near ones is noise
    safe = np.where(some, p, 1.0)
    mean, square = (np.where(some, part / safe, 0.0) for part in (first, second))
    return Band(share=np.where(some, p, 0.0), mean=mean, square=square)


def moments(
    table_: np.ndarray, theta: float, points: int = 64, scale: float = 1.0
) -> tuple[float, float]:
    """(mean, variance) of sum_i A_i(g) d log p(x_i) / d theta over batches of n, exactly.

    An estimator that is linear in the gaps between rewards is an integral of its own table over
    thresholds: A_i(g) = integral of T[number of g_j > u, 1[g_i > u]] du. So the second moment is a
    double integral over u < v of a sum over how many of the n responses fall below u, between, and
    above v. Gauss-Legendre quadrature; the integrand is smooth between its borders.
    """
    n = len(table_) - 1
    nodes, weights = np.polynomial.legendre.leggauss(points)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # v = y^2, u = (x y)^2; du dv = 2 x y^2 dx * 2 y dy, twice for both orders.
    y, x = np.meshgrid(nodes, nodes)
    weight = np.outer(weights, weights) * 8 * x * y**3
    bands = [_band(theta, None, x * y), _band(theta, x * y, y), _band(theta, y, None)]
    second = np.zeros_like(y)
    for high in range(n + 1):
        for middle in range(n + 1 - high):
            counts = (n - high - middle, middle, high)
            at_u, at_v = middle + high, high
            first_of = (table_[at_u, 0], table_[at_u, 1], table_[at_u, 1])
            second_of = (table_[at_v, 0], table_[at_v, 0], table_[at_v, 1])
            chance = np.full_like(y, math.factorial(n))
            own, left, right = (np.zeros_like(y) for _ in range(3))
            for count, a, b, band in zip(counts, first_of, second_of, bands, strict=True):
                chance = chance * band.share**count / math.factorial(count)
                own += count * a * b * (band.square - band.mean**2)
                left += count * a * band.mean
                right += count * b * band.mean
            second += chance * (own + left * right)
    root = nodes
    low, up = _band(theta, None, root), _band(theta, root, None)
    first = np.zeros_like(root)
    for c in range(n + 1):
        chance = math.comb(n, c) * up.share**c * low.share ** (n - c)
        first += chance * (c * table_[c, 1] * up.mean + (n - c) * table_[c, 0] * low.mean)
    mean = float((first * weights * 2 * root).sum()) * scale / SIGMA
    return mean, float((second * weight).sum()) * (scale / SIGMA) ** 2 - mean**2


def naive_moments(k: int, theta: float) -> tuple[float, float]:
    """As `moments`, of floor(n / k) separate groups whose members all get their group's maximum."""
    every = np.ones((k + 1, 2))
    every[0] = 0.0
    mean, variance = moments(every, theta)
    return mean, variance / (N // k)


def _variances(theta: float) -> list[dict[str, Any]]:
    """A row an estimator and k, of those that exist."""
    rows = []
    for k in range(1, N + 1):
        exact = expected_max(theta, k)[1]
        for name in (*NAMES, "naive"):
            if (name in ("pkpo_sloo", "pkpo_centred") and k == N) or (
                name == "pkpo_sloo_minus_one" and k == 1
            ):
                continue
            mean, variance = (
                naive_moments(k, theta)
                if name == "naive"
                else moments(table(name, N, k), theta, scale=_scale(name, k))
            )
            row = {"estimator": name, "theta": theta, "k": k, "mean": mean, "exact": exact}
            rows.append({**row, "variance": variance})
    return rows


def run() -> dict[str, Any]:
    """Everything for the figure, as JSON values."""
    thetas = np.linspace(0.0, 1.2, 121)
    return {
        "sigma": SIGMA,
        "n": N,
        "thetas": thetas.tolist(),
        "expected_max": {
            str(k): [expected_max(float(theta), k)[0] for theta in thetas] for k in KS
        },
        "best_theta": {str(k): best_theta(k) for k in KS},
        "variance": [row for theta in THETAS for row in _variances(theta)],
    }
