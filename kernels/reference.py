"""float64 torch references of the kernels: the values and gradients every kernel must match.

Same names and signatures as `passk_fast.kernels`. Written for plainness: whole logits, autograd,
no chunks, every masked row computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.checks import check_group
from passk_fast.kernels.inputs import LossReport, LossRows, OutputHead, OutputLogits
from passk_fast.kernels.options import DEFAULT_LOSS, PolicyLoss
from passk_fast.kernels.shapes import Bool, Float, Int
from passk_fast.kernels.shard import Shard
from passk_fast.kernels.token_loss import policy_loss_from_logprob
from passk_fast.kernels.torch_logprob import token_logprob_from_logits

__all__ = [
    "group_advantage",
    "linear_policy_loss",
    "policy_loss",
    "policy_loss_from_logprob",
    "token_logprob",
    "token_logprob_from_logits",
]


def group_advantage(
    correct: Bool[Tensor, "P N"], table: Float[Tensor, "counts 2"]
) -> tuple[Float[Tensor, "P N"], Bool[Tensor, " P"]]:
    """Advantages, float64, and which groups are informative.

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


_replicated: Callable[..., Tensor] = _Replicated.apply
_gathered: Callable[..., Tensor] = _Gathered.apply


def _logits(head: OutputHead) -> OutputLogits:
    """This shard's logits [T, V_local] in float64."""
    shard = head.check()
    enter = _gathered if head.sequence_parallel else _replicated
    return OutputLogits(
        logits=enter(head.hidden.double(), shard) @ head.weight.double().T,
        temperature=head.temperature,
        group=head.group,
        vocab=head.vocab,
        soft_cap=head.soft_cap,
    )


def _capped(output: OutputLogits) -> Tensor:
    """The logits in float64 under the soft cap, by autograd's own tanh."""
    logits, cap = output.logits.double(), output.soft_cap
    return cap * torch.tanh(logits / cap) if cap else logits


def policy_loss(
    output: OutputLogits, rows: LossRows, loss: PolicyLoss = DEFAULT_LOSS
) -> tuple[Float[Tensor, ""], LossReport]:
    """(loss, report) in float64; see `passk_fast.kernels.policy_loss`."""
    shard = output.check(rows.targets)
    rows.check(loss, shard.vocab, output.logits.device)
    logp, entropy = token_logprob_from_logits(
        _capped(output),
        rows.targets,
        temperature=output.temperature,
        group=output.group,
        vocab=output.vocab,
    )
    value, metrics = policy_loss_from_logprob(logp, entropy, rows, loss)
    return value, LossReport(metrics=metrics, backend="reference")


def linear_policy_loss(
    head: OutputHead, rows: LossRows, loss: PolicyLoss = DEFAULT_LOSS
) -> tuple[Float[Tensor, ""], LossReport]:
    """(loss, report) in float64; see `passk_fast.kernels.linear_policy_loss`."""
    return policy_loss(_logits(head), rows, loss)


def token_logprob(
    head: OutputHead, targets: Int[Tensor, " T"]
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """(logp, entropy) in float64, differentiable."""
    output = _logits(head)
    return token_logprob_from_logits(
        _capped(output),
        targets,
        temperature=output.temperature,
        group=output.group,
        vocab=output.vocab,
    )
