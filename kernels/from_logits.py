"""K2 `policy_loss`: the policy loss and its gradient from logits that already exist, [T, V_local].

Row mathematics and memory traffic: triton/logits.py. The gradient is made in the forward pass, in
place if asked (then it costs 4 bytes a bfloat16 element in all); backward only scales it. With a
sharded vocabulary: row statistics, one all-gather of [T, 4], row mathematics, gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from passk_fast.kernels.attach import attach
from passk_fast.kernels.backend import pick_backend, row_slopes
from passk_fast.kernels.inputs import LossReport, LossRows, OutputLogits
from passk_fast.kernels.logit_rows import (
    LogitInput,
    logit_gradient,
    logit_rows,
    row_block,
    row_grid,
)
from passk_fast.kernels.options import DEFAULT_LOSS, PolicyLoss
from passk_fast.kernels.shapes import Float
from passk_fast.kernels.shard import as_temperature
from passk_fast.kernels.token_loss import policy_loss_from_logprob
from passk_fast.kernels.torch_logprob import token_logprob_from_logits


def policy_loss(
    output: OutputLogits,
    rows: LossRows,
    loss: PolicyLoss = DEFAULT_LOSS,
    *,
    inplace: bool = False,
) -> tuple[Float[Tensor, ""], LossReport]:
    """Policy loss of packed tokens from logits.

    Args:
        output: the logits [T, V_local] and what they are of.
        rows: the rows of the loss; `row_index` is not read, all rows in the mask are computed.
        loss: options.
        inplace: allow the gradient to overwrite the logits (the Triton path then makes no tensor
            of T x V; the torch path ignores it).

    Returns:
        (loss, report): a float32 loss (float64 with float64 logits), differentiable in the logits,
        once; metrics over the rows in the mask.

    Raises:
        TypeError, ValueError: a field is of the wrong type, shape, device or range; names it.
    """
    logits = output.logits
    shard = output.check(rows.targets)
    rows.check(loss, shard.vocab, logits.device)
    of = LogitInput(
        logits=logits,
        targets=rows.targets,
        temperature=as_temperature(output.temperature, logits.shape[0], logits.device),
        shard=shard,
        backend=pick_backend(logits),
        soft_cap=output.soft_cap,
    )
    if of.backend == "torch":
        value, metrics = _by_torch(of, rows, loss)
        return value, LossReport(metrics=metrics, backend=of.backend)
    need = torch.is_grad_enabled() and logits.requires_grad
    with torch.no_grad():
        grad = (logits.detach() if inplace else torch.empty_like(logits)) if need else None
        run = _fused if shard.size == 1 and loss.ratio == "token" else _sharded
        logp, entropy = run(replace(of, logits=logits.detach()), grad, rows, loss)
        _, metrics = row_slopes(logp, entropy, rows, loss, of.backend)
        value = (metrics["loss_sum"] / rows.denominator).float()
    if grad is not None:
        value = attach(value, (logits,), [grad])
    return value, LossReport(metrics=metrics, backend=of.backend)


def _by_torch(of: LogitInput, rows: LossRows, loss: PolicyLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """The torch path, through autograd."""
    logp, entropy = token_logprob_from_logits(
        of.logits,
        of.targets,
        temperature=of.temperature,
        group=of.shard.group,
        vocab=of.shard.vocab,
        soft_cap=of.soft_cap,
    )
    return policy_loss_from_logprob(logp, entropy, rows, loss)


def _fused(
    of: LogitInput, grad: Tensor | None, rows: LossRows, loss: PolicyLoss
) -> tuple[Tensor, Tensor]:
    """(logp, entropy) float64 [T]; everything in one kernel."""
    from passk_fast.kernels.triton.logits import fused_kernel
    from passk_fast.kernels.triton.rows import option_constants

    logits = of.logits
    count, width = logits.shape
    logp = torch.zeros(count, dtype=torch.float64, device=logits.device)
    entropy = torch.zeros_like(logp)
    scale = torch.full((1,), rows.denominator, dtype=torch.float64, device=logits.device)
    pointer, scalar, per_row = of.tau_arguments
    if count:
        fused_kernel[row_grid(count, logits.device)](
            logits, grad, of.targets, rows.old_logp, rows.advantages, rows.mask,
            rows.rollout_logp, rows.reference_logp, pointer, logp, entropy, scale,
            logits.stride(0), 0 if grad is None else grad.stride(0), count, of.shard.num_columns,
            width, scalar, PER_ROW_TAU=per_row, GRADIENT=grad is not None,
            **option_constants(loss, rows), SOFT_CAP=float(of.soft_cap),
            BLOCK=row_block(width, logits.device), num_warps=8,
        )  # fmt: skip
    return logp, entropy


def _sharded(
    of: LogitInput, grad: Tensor | None, rows: LossRows, loss: PolicyLoss
) -> tuple[Tensor, Tensor]:
    """(logp, entropy) float64 [T]; statistics, one collective, slopes, gradient."""
    found = logit_rows(of, rows.mask)
    if grad is not None:
        slope, _ = row_slopes(found.logp, found.entropy, rows, loss, of.backend)
        bonus = None
        if loss.entropy_coef:
            bonus = rows.mask.double() * (loss.entropy_coef / rows.denominator)
        logit_gradient(found, slope, bonus, out=grad)
    return found.logp, found.entropy
