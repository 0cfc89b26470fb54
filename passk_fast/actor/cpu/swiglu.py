"""SwiGLU on a CPU, for Megatron's dense layers and for the experts.

Memory bandwidth limits it there: torch's own chunk, silu and product, and the concatenation of
their gradients, read and write whole activations, which are larger than any cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 18
"""Elements of the input per block: together with their gradient they fit into a cache."""


class _Context(Protocol):
    """torch's context of an autograd function."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class Swiglu(MegatronModule):
    """The activation of Megatron's MLP: [..., 2 F], gate before up -> [..., F]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of x [..., 2 F], whose first half is the gate: [..., F]."""
    if x.device.type == "cpu":
        apply: Callable[[Tensor], Tensor] = _CpuSwiglu.apply
        return apply(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class _CpuSwiglu(torch.autograd.Function):
    """The operations that autograd would run, bit for bit, one block of rows at a time.

    Saves only x, which the preceding matrix product has made; silu(gate) is computed again.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        for (gate, up), y in zip(_halves(x), _blocks(out), strict=True):
            torch.ops.aten.silu.out(gate, out=y).mul_(up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for (gate, up), (to_gate, to_up), g in zip(
            _halves(x), _halves(grad_x), _blocks(grad), strict=True
        ):
            torch.ops.aten.silu.out(gate, out=to_up).mul_(g)
            torch.mul(g, up, out=to_gate)
            torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return grad_x


def _blocks(x: Tensor, size: int = _BLOCK // 2) -> tuple[Tensor, ...]:
    """Blocks of rows of x [..., H], `size` elements each or one row."""
    rows = x.reshape(-1, x.shape[-1])
    blocks: tuple[Tensor, ...] = rows.split(max(1, size // x.shape[-1]))
    return blocks


def _halves(x: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return (block.chunk(2, dim=-1) for block in _blocks(x, _BLOCK))
