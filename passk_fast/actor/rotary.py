"""Rotary embedding: the frequencies of a model, and the rotation of queries and keys."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from passk_fast.actor.autograd import Context
from passk_fast.model.rope import Rope
from passk_fast.model.shape import ModelShape


def rotary_frequencies(shape: ModelShape) -> Float[Tensor, " half_head"]:
    """Inverse frequencies [head_dim / 2], float32, scaled as the model's `rope` says."""
    rope, size = shape.rope, shape.head_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    frequencies = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3_frequencies(frequencies, rope)
        case "yarn":
            return _yarn_frequencies(rope, size)
    return frequencies


def _llama3_frequencies(frequencies: Tensor, rope: Rope) -> Tensor:
    """Low frequencies divided by the factor, high ones as they are, those between interpolated:
    transformers' `_compute_llama3_parameters`, operation by operation."""
    positions, low, high = rope.original_max_positions, rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > positions / low, frequencies / rope.factor, frequencies)
    smooth = (positions / wavelength - low) / (high - low)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    is_between = ~(wavelength < positions / high) * ~(wavelength > positions / low)
    return torch.where(is_between, between, scaled)


def _yarn_frequencies(rope: Rope, size: int) -> Tensor:
    """Slow channels divided by the factor, fast ones as they are, those between interpolated:
    transformers' `_compute_yarn_parameters`, operation by operation."""
    powers = rope.theta ** (torch.arange(0, size, 2).float() / size)

    def channel(rotations: float) -> float:
        """The channel that turns so often within the original positions."""
        ratio = rope.original_max_positions / (rotations * 2 * math.pi)
        return (size * math.log(ratio)) / (2 * math.log(rope.theta))

    first, last = channel(rope.fast_rotations), channel(rope.slow_rotations)
    if rope.whole_channels:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


class Rotate(torch.autograd.Function):
    """Rotary embedding of x [T, heads, d] in halves, as Hugging Face lays them out."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin), the angle times `direction`.

    Halves of a head are short for a CPU's vectors, so only what needs them goes by halves.
    """
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x, cos, out=out)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, sin, value=-direction)
    out_second.addcmul_(first, sin, value=direction)
    return out
