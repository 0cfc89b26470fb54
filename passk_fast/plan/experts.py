"""Mixture-of-experts layers in a plan: a pass with tokens spread evenly over ranks.

Which expert gets which token is known only with data, which a plan does not have. Within a rank it
makes no difference to bytes: the experts' products are grouped, whatever the sizes of the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor, nn

from passk_fast.config import ParallelConfig


def balance_experts(chunk: nn.Module, parallel: ParallelConfig) -> None:
    """Megatron's MoE layer reads how many tokens each expert gets, which meta tensors do not say.

    Gives every MoE layer of a chunk a forward pass for meta tensors, with the real experts.
    """
    for module in chunk.modules():
        if isinstance(module, MoELayer):
            module.forward = MethodType(_balanced(parallel.expert), module)


def _balanced(expert_ranks: int) -> Callable[..., tuple[Tensor, None]]:
    def forward(
        layer: MoELayer, hidden: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, None]:
        """As the all-to-all dispatcher: permute, exchange, sort by expert, compute, and back."""
        x = hidden.view(-1, hidden.shape[-1])
        k = layer.config.moe_router_topk
        scores = layer.router.gating(x).softmax(-1)
        weights, _ = scores.topk(k, dim=-1)
        rows = torch.empty(len(x) * k, dtype=torch.int64, device=x.device)
        permuted = x.index_select(0, rows)
        each = weights.reshape(-1)
        count = len(layer.experts.local_experts)
        if expert_ranks > 1:
            permuted, each = permuted.clone(), each.clone()
            if count > 1:
                permuted, each = permuted.index_select(0, rows), each.index_select(0, rows)
        sizes = torch.empty(count, dtype=torch.int64, device=x.device)
        out, _ = layer.experts(permuted, sizes, each)
        if expert_ranks > 1:
            if count > 1:
                out = out.index_select(0, rows)
            out = out.clone()
        # As Megatron's scatter_add, whose backward keeps only the indices.
        summed = torch.zeros_like(x).index_put((rows,), out, accumulate=True)
        return summed.view_as(hidden), None

    return forward
