"""K2 `policy_loss`: the policy loss and its gradient from logits that already exist, [T, V_local].

Row mathematics and memory traffic: triton/logits.py. The gradient is made in the forward pass, in
place if asked (then it costs 4 bytes a bfloat16 element in all); backward only scales it. With a
sharded vocabulary: row statistics, one all-gather of [T, 4], row mathematics, gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.attach import attach
from passk_fast.kernels.backend import pick_backend, row_slopes, torch_loss
from passk_fast.kernels.checks import check_logits
from passk_fast.kernels.logit_rows import (
    logit_gradient,
    logit_rows,
    row_block,
    row_grid,
    tau_arguments,
)
from passk_fast.kernels.loss_rows import LossRows
from passk_fast.kernels.options import PolicyLoss, merge_clip
from passk_fast.kernels.shard import Shard, as_temperature, shard_of
from passk_fast.kernels.torch_logprob import token_logprob_from_logits


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
    inplace: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """Policy loss of packed tokens from logits.

    Args:
        logits: [T, V_local] with contiguous rows, any float type; the row stride is free.
        inplace: allow the gradient to overwrite the logits (the Triton path then makes no tensor
            of T x V; the torch path ignores it).
        Others as in `linear_policy_loss`.

    Returns:
        (loss, metrics), float32 loss (float64 with float64 logits). Differentiable in `logits`,
        once. Metrics are float64 sums over the rows in `mask`, and "backend".

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, device or range; names it.
    """
    check_logits(logits, targets)
    shard = shard_of(logits.shape[1], group, vocab)
    rows = LossRows(
        old_logp=old_logp,
        advantages=advantages,
        mask=mask,
        denominator=denominator,
        loss=merge_clip(loss, clip_low, clip_high),
        rollout_logp=rollout_logp,
        reference_logp=reference_logp,
        sequence_index=sequence_index,
    )
    rows.check(targets, shard.vocab, logits.device)
    tau = as_temperature(temperature, logits.shape[0], logits.device)
    backend = pick_backend(logits)
    if backend == "torch":
        value, metrics = _by_torch(logits, targets, rows, tau, shard)
        return value, {**metrics, "backend": backend}
    need = torch.is_grad_enabled() and logits.requires_grad
    with torch.no_grad():
        grad = (logits.detach() if inplace else torch.empty_like(logits)) if need else None
        fused = shard.size == 1 and rows.loss.ratio == "token"
        run = _fused if fused else _sharded
        logp, entropy = run(logits.detach(), grad, targets, rows, tau, shard, backend)
        _, found = row_slopes(logp, entropy, rows, backend)
        value = (found["loss_sum"] / denominator).float()
    if grad is not None:
        value = attach(value, (logits,), [grad])
    return value, {**found, "backend": backend}


def _by_torch(
    logits: Tensor, targets: Tensor, rows: LossRows, temperature: float | Tensor, shard: Shard
) -> tuple[Tensor, dict[str, Any]]:
    """The torch path, through autograd."""
    logp, entropy = token_logprob_from_logits(
        logits, targets, temperature=temperature, group=shard.group, vocab=shard.vocab
    )
    return torch_loss(logp, entropy, rows)


def _fused(
    logits: Tensor,
    grad: Tensor | None,
    targets: Tensor,
    rows: LossRows,
    temperature: float | Tensor,
    shard: Shard,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy) float64 [T]; everything in one kernel."""
    from passk_fast.kernels.triton.logits import fused_kernel
    from passk_fast.kernels.triton.rows import option_constants

    count, width = logits.shape
    logp = torch.zeros(count, dtype=torch.float64, device=logits.device)
    entropy = torch.zeros_like(logp)
    scale = torch.full((1,), rows.denominator, dtype=torch.float64, device=logits.device)
    pointer, scalar, per_row = tau_arguments(temperature, logits)
    old, rollout, reference = rows.old_logp, rows.rollout_logp, rows.reference_logp
    if count:
        fused_kernel[row_grid(count, logits.device)](
            logits, grad, targets, old, rows.advantages, rows.mask, rollout, reference, pointer,
            logp, entropy, scale, logits.stride(0), 0 if grad is None else grad.stride(0), count,
            shard.num_columns, width, scalar, PER_ROW_TAU=per_row, GRADIENT=grad is not None,
            **option_constants(rows.loss, old, rollout, reference),
            BLOCK=row_block(width, logits.device), num_warps=8,
        )  # fmt: skip
    return logp, entropy


def _sharded(
    logits: Tensor,
    grad: Tensor | None,
    targets: Tensor,
    rows: LossRows,
    temperature: float | Tensor,
    shard: Shard,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy) float64 [T]; statistics, one collective, slopes, gradient."""
    found = logit_rows(logits, targets, rows.mask, temperature, shard, backend)
    if grad is not None:
        slope, _ = row_slopes(found.logp, found.entropy, rows, backend)
        bonus = None
        if rows.loss.entropy_coef:
            bonus = rows.mask.double() * (rows.loss.entropy_coef / rows.denominator)
        logit_gradient(found, logits, targets, slope, bonus, temperature, shard, backend, out=grad)
    return found.logp, found.entropy
