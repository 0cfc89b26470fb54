"""RMSNorm for Megatron's local layer spec, and rotary angles of packed positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from passk_fast.actor.attention import PackedParams
from passk_fast.actor.autograd import Context, call


class RMSNorm(torch.nn.Module):
    """Root mean square norm; marks its weight for sequence parallelism (torch's cannot)."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **kwargs: object
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        self.eps: float = config.layernorm_epsilon

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """w x / rms(x), computed in float32, in the type of x."""
        if x.device.type == "cpu":
            return call(_CpuNorm, x.float(), self.weight.float(), self.eps).to(x.dtype)
        out: Tensor = F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)
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
