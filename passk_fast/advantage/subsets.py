"""Shares of k-subsets without overflow, underflow to a wrong zero, or cancellation.

Every function returns float64 with a relative error below 1e-12 to n = 4096; where an exact value
is positive but below float64's range it is held at the smallest normal number, so that "zero"
always means zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

Floats = npt.NDArray[np.float64]
SMALLEST = float(np.finfo(np.float64).tiny)
"""2.2e-308: what a positive value too small for float64 is held at (n > 1000 only)."""


def share_within(n: int, k: int) -> Float64[Floats, " {n+1}"]:
    """C(m, k) / C(n, k) for m = 0..n, float64 [n + 1]: a k-subset lies within m of n items.

    The recurrence from m = n downwards multiplies by (m - k) / m; zero exactly for m < k.
    """
    out = np.zeros(n + 1)
    m = np.arange(n, k, -1)
    out[k:] = np.cumprod(np.concatenate(([1.0], (m - k) / m)))[::-1]
    np.maximum(out[k:], SMALLEST, out=out[k:])
    return out


def share_beyond(n: int, k: int) -> Float64[Floats, " {n+1}"]:
    """1 - C(m, k) / C(n, k) for m = 0..n, float64 [n + 1], without the subtraction.

    C(j, k) - C(j - 1, k) = C(j - 1, k - 1), so the share is the sum over j = m + 1..n of
    share_within(n, k)[j] * k / j.
    """
    steps = share_within(n, k)[1:] * k / np.arange(1, n + 1)
    out: Floats = np.concatenate((np.cumsum(steps[::-1])[::-1], [0.0]))
    out[:k] = 1.0  # no k-subset fits within fewer than k items
    np.minimum(out, 1.0, out=out)
    return out


def no_success(n: int, k: int) -> Float64[Floats, " {n+1}"]:
    """q[c] = C(n - c, k) / C(n, k), float64 [n + 1]: none of k draws from n is one of c correct."""
    return share_within(n, k)[::-1]


def some_success(n: int, k: int) -> Float64[Floats, " {n+1}"]:
    """1 - q[c] without cancellation where q is near 1, float64 [n + 1]: pass@k of c correct."""
    return share_beyond(n, k)[::-1]
