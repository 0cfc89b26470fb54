"""The soft cap of logits in Triton: cap tanh(z / cap). Off (CAP = 0) it generates no code."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def soft_capped(z, CAP: tl.constexpr):
    """cap tanh(z / cap) of float32 z. For x = z / cap near 0 by its series, whose next term is
    below 1e-8 of x, since 1 - 2 / (exp(2 x) + 1) cancels there."""
    if CAP > 0:
        x = z * (1.0 / CAP)
        square = x * x
        near = 0.0218694885 + square * -0.0088632355
        near = x * (1.0 + square * (-0.333333333 + square * (0.133333333 + square * (-0.053968254
               + square * near))))  # fmt: skip
        far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
        z = CAP * tl.where(square < 0.0625, near, far)
    return z


@triton.jit
def soft_cap_slope(capped, CAP: tl.constexpr):
    """d capped / dz = 1 - (capped / cap)^2."""
    tanh = capped * (1.0 / CAP)
    return 1.0 - tanh * tanh
