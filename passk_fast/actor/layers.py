"""RMSNorm and a layer with output norms for Megatron's local spec, and packed rotary angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.autograd.function import once_differentiable

from passk_fast.actor.attention import PackedParams
from passk_fast.actor.autograd import Context, call

_Add = Callable[[tuple[Tensor, "Tensor | None"], Tensor, float], Tensor]
"""((output, bias), residual, dropout) -> their sum."""
_MakeAdd = Callable[[bool, bool], _Add]
"""Megatron's bias-dropout-add: (training, fused) -> the sum."""


class RMSNorm(torch.nn.Module):
    """Root mean square norm; marks its weight for sequence parallelism (torch's cannot).

    With Megatron's `layernorm_zero_centered_gamma` the weight is what is added to 1.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **kwargs: object
    ) -> None:
        super().__init__()
        self.offset = 1.0 if config.layernorm_zero_centered_gamma else 0.0
        start = torch.full((hidden_size,), 1.0 - self.offset, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(start)
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        self.eps: float = config.layernorm_epsilon

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """w x / rms(x), computed in float32, in the type of x."""
        weight = self.weight.float()
        if self.offset:
            weight = weight + self.offset
        if x.device.type == "cpu":
            return call(_CpuNorm, x.float(), weight, self.eps).to(x.dtype)
        out: Tensor = F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps)
        return out.to(x.dtype)


class _CpuNorm(torch.autograd.Function):
    """y = w x / rms(x), in half the passes over memory of torch's own, which is composed there."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x / rms: dx = (g w - n mean(g w n)) / rms, dw = sum g n."""
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        product = (grad * unit).flatten(0, -2)
        mean = torch.mv(product, weight / x.shape[-1]).view(scale.shape)
        grad_x = (grad * weight).addcmul_(unit, mean, value=-1.0).mul_(scale)
        return grad_x, product.sum(dim=0), None


class OutputNormLayer(TransformerLayer):
    """A layer that normalises what attention and MLP put out before it is added (Gemma 2)."""

    self_attn_bda: _MakeAdd
    mlp_bda: _MakeAdd

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.attention_output_norm = RMSNorm(config, config.hidden_size)
        self.mlp_output_norm = RMSNorm(config, config.hidden_size)
        self.self_attn_bda = _normed(self.attention_output_norm, self.self_attn_bda)
        self.mlp_bda = _normed(self.mlp_output_norm, self.mlp_bda)


def _normed(norm: RMSNorm, add: _MakeAdd) -> _MakeAdd:
    """Megatron's residual sum with `norm` before it."""

    def make(training: bool, fused: bool) -> _Add:
        plain = add(training, fused)

        def normed_add(
            output: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float
        ) -> Tensor:
            assert output[1] is None, "a bias would have to be added before the norm"
            return plain((norm(output[0]), None), residual, dropout)

        return normed_add

    return make


class PackedRotary(torch.nn.Module):
    """Rotary angles of packed positions, at the model's frequencies.

    For Transformer Engine's layers; `PackedAttention` rotates its queries and keys itself.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Float[Tensor, " half_head"]) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.float(), persistent=False)

    def get_rotary_seq_len(
        self, context: object, block: object, x: object, config: object, params: PackedParams
    ) -> Int[Tensor, " T"]:
        """Megatron hands the result to `forward`: the positions themselves."""
        return params.positions_T

    def forward(
        self, positions_T: Int[Tensor, " T"], **kwargs: object
    ) -> Float[Tensor, "T 1 1 head_dim"]:
        """Angles in float32."""
        angles = positions_T.float()[:, None] * self.inv_freq.to(positions_T.device)[None, :]
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
