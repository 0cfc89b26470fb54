"""float64 torch references of the kernels: the values and gradients every kernel must match.

Same names and signatures as `passk_fast.kernels`. Written for plainness: whole logits, autograd,
no chunks, every masked row computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.checks import check_group, check_head, check_logits, check_rows
from passk_fast.kernels.options import MAX_METRICS, PolicyLoss, merge_clip
from passk_fast.kernels.shard import Shard, shard_of
from passk_fast.kernels.token_loss import policy_loss_from_logprob
from passk_fast.kernels.torch_logprob import token_logprob_from_logits

__all__ = [
    "MAX_METRICS",
    "PolicyLoss",
    "group_advantage",
    "linear_policy_loss",
    "policy_loss",
    "policy_loss_from_logprob",
    "token_logprob",
    "token_logprob_from_logits",
]


def group_advantage(correct: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages, float64 [P, N], and which groups have any, bool [P].

    Args:
        correct: bool [P, N].
        table: [N + 1, 2], the estimator: row c correct of N, column 0 wrong, 1 correct.

    Raises:
        ValueError, TypeError: as `passk_fast.kernels.group_advantage`.
    """
    check_group(correct, table)
    rows = table.double()[correct.sum(dim=1)]  # [P, 2]
    advantage = torch.where(correct, rows[:, 1:], rows[:, :1])
    return advantage, (advantage != 0).any(dim=1)


class _Replicated(torch.autograd.Function):
    """Identity whose gradient is summed over the shards."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        ctx.shard.sum(grad)
        return grad, None


class _Gathered(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient is summed over shards and split again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return hidden if shard.size == 1 else shard.gather(hidden)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad if ctx.shard.size == 1 else ctx.shard.scatter_sum(grad)[0]), None


def _logits(
    hidden: Tensor, weight: Tensor, group: Any, vocab: int | None, sequence_parallel: bool
) -> Tensor:
    """This shard's logits [T, V_local] in float64."""
    shard = shard_of(weight.shape[0], group, vocab)
    enter = _Gathered if sequence_parallel else _Replicated
    return enter.apply(hidden.double(), shard) @ weight.double().T


def policy_loss(
    logits: Tensor,
    targets: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    clip_low: float | None = None,
    clip_high: float | None = None,
    temperature: float | Tensor = 1.0,
    loss: PolicyLoss | None = None,
    rollout_logp: Tensor | None = None,
    reference_logp: Tensor | None = None,
    sequence_index: Tensor | None = None,
    group: Any = None,
    vocab: int | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """(loss, metrics) in float64; see `passk_fast.kernels.policy_loss`."""
    check_logits(logits, targets)
    rows = {"old_logp": old_logp, "advantages": advantages, "mask": mask}
    check_rows(targets, vocab or logits.shape[1], device=logits.device, **rows)
    logp, entropy = token_logprob_from_logits(
        logits.double(), targets, temperature=temperature, group=group, vocab=vocab
    )
    return policy_loss_from_logprob(
        logp,
        entropy,
        old_logp=logp.detach() if old_logp is None else old_logp,
        rollout_logp=rollout_logp,
        reference_logp=reference_logp,
        advantages=advantages,
        mask=mask,
        denominator=denominator,
        loss=merge_clip(loss, clip_low, clip_high),
        sequence_index=sequence_index,
    )


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    group: Any = None,
    vocab: int | None = None,
    sequence_parallel: bool = False,
    **options: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """(loss, metrics) in float64; see `passk_fast.kernels.linear_policy_loss`."""
    check_head(hidden, weight)
    logits = _logits(hidden, weight, group, vocab, sequence_parallel)
    return policy_loss(
        logits, targets, old_logp, advantages, mask, group=group, vocab=vocab, **options
    )


def token_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    group: Any = None,
    vocab: int | None = None,
    sequence_parallel: bool = False,
) -> tuple[Tensor, Tensor]:
    """(logp [T], entropy [T]) in float64, differentiable."""
    check_head(hidden, weight)
    logits = _logits(hidden, weight, group, vocab, sequence_parallel)
    return token_logprob_from_logits(
        logits, targets, temperature=temperature, group=group, vocab=vocab
    )
