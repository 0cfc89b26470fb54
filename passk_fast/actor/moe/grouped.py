"""All experts of a rank in two grouped matrix products instead of two for each expert.

torch's own: one kernel in bfloat16 on Hopper and later, a loop inside torch elsewhere (on a CPU,
in float32). Transformer Engine's layers bring their own grouped GEMM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor
from torch.autograd.function import once_differentiable

from passk_fast.actor.autograd import Context, call
from passk_fast.actor.cpu.swiglu import swiglu


class GroupedExperts(SequentialMLP):
    """Megatron's experts with their parameters and names, computed together."""

    def forward(
        self,
        tokens: Float[Tensor, "S D"],
        tokens_per_expert: Int[Tensor, " E"],
        probs: Float[Tensor, " S"],
    ) -> tuple[Float[Tensor, "S D"], None]:
        """Outputs of tokens that are sorted by expert, each times its routing weight."""
        ends = tokens_per_expert.cumsum(0).to(tokens.device, torch.int32)
        first = [expert.linear_fc1.weight for expert in self.local_experts]
        second = [expert.linear_fc2.weight for expert in self.local_experts]
        hidden = swiglu(call(_GroupedLinear, tokens, ends, *first))
        hidden = (hidden * probs[:, None]).to(tokens.dtype)
        return call(_GroupedLinear, hidden, ends, *second), None


def grouped_path(device: str, dtype: str, *, transformer_engine: bool) -> str:
    """How experts are computed, for the run's output."""
    if transformer_engine:
        return "Transformer Engine's grouped GEMM"
    hopper = device == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    kernel = "one kernel" if hopper and dtype == "bfloat16" else "a loop over experts"
    return f"torch's grouped_mm, {kernel}"


class _GroupedLinear(torch.autograd.Function):
    """x W_e^T for the rows of each expert e: x [S, K], `ends` int32 [E], E weights [N, K].

    Weights are stacked for the product only, forward and again backward: a stack kept in between
    would be a second copy of all experts of all layers.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, ends: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, ends, *weights)
        if not len(x):
            return x.new_zeros(0, weights[0].shape[0])
        return F.grouped_mm(x, torch.stack(weights).transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, ends, *weights = ctx.saved_tensors
        if not len(x):
            return x.new_zeros(x.shape), None, *(torch.zeros_like(w) for w in weights)
        grad = grad.contiguous()
        grad_x = F.grouped_mm(grad, torch.stack(weights), offs=ends)
        return grad_x, None, *F.grouped_mm(grad.t(), x, offs=ends).unbind(0)
