"""The soft cap of logits in torch: cap tanh(z / cap), Gemma 2's (arXiv 2408.00118). 0 is off."""

from __future__ import annotations

import math

from torch import Tensor


def check_soft_cap(cap: float) -> None:
    """ValueError unless `cap` is 0 (off) or finite and above 0."""
    if not (math.isfinite(cap) and cap >= 0):
        raise ValueError(f"soft_cap must be 0 (off) or finite and above zero, got {cap}.")


def soft_capped(z: Tensor, cap: float) -> Tensor:
    """cap tanh(z / cap), of z's shape and type; z itself where `cap` is 0."""
    return (z / cap).tanh() * cap if cap else z


def soft_cap_slope(capped: Tensor, cap: float) -> Tensor:
    """d capped / dz = 1 - (capped / cap)^2, from the capped value; `cap` above 0."""
    return 1.0 - (capped / cap).square()
