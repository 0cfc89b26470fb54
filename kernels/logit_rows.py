"""Statistics and gradients of rows of logits, vocab-parallel, by Triton or by torch.

What `policy_loss` and the softmax fallback of `linear_policy_loss` share: first (logp, entropy) of
every row, later, once the loss has said its slopes, the gradient of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from passk_fast.kernels.backend import Backend
from passk_fast.kernels.shard import Shard
from passk_fast.kernels.tiles import ROW_BLOCK
from passk_fast.kernels.torch_logprob import token_logprob_from_logits


@dataclass(frozen=True, kw_only=True)
class LogitInput:
    """Rows of logits and what turns them into log-probs."""

    logits: Tensor
    """[T, V_local]"""
    targets: Tensor
    temperature: float | Tensor
    shard: Shard
    backend: Backend
    soft_cap: float = 0.0
    """As in `OutputHead`; the gradient is of the logits before the cap."""

    @property
    def tau_arguments(self) -> tuple[Tensor | None, float, bool]:
        """(pointer or None, scalar, whether each row has its own) for the kernels."""
        if isinstance(self.temperature, Tensor):
            return self.temperature.contiguous(), 1.0, True
        return None, self.temperature, False


@dataclass(frozen=True)
class LogitRows:
    """Row statistics of an input."""

    of: LogitInput
    logp: Tensor
    """float64 (torch path: the logits' compute type) [T]; 0 outside the mask."""
    entropy: Tensor
    saved: tuple[Tensor, ...]
    """The torch path's graph (logits, logp, entropy) or the Triton path's (M, ln S)."""


def row_grid(rows: int, device: torch.device) -> tuple[int]:
    """Programs of a persistent row kernel."""
    if device.type == "cpu":
        return (min(rows, 4),)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return (min(rows, 4 * multiprocessors),)


def row_block(columns: int, device: torch.device) -> int:
    """Columns a program reads at a time."""
    most = 512 if device.type == "cpu" else ROW_BLOCK
    block = 128
    while block < min(most, columns):
        block *= 2
    return block


def logit_rows(of: LogitInput, mask: Tensor) -> LogitRows:
    """Log-prob and entropy of the rows in `mask`; one collective when the vocabulary is sharded."""
    logits, shard = of.logits, of.shard
    if of.backend == "torch":
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            logp, entropy = token_logprob_from_logits(
                leaf,
                of.targets,
                temperature=of.temperature,
                group=shard.group,
                vocab=shard.vocab,
                soft_cap=of.soft_cap,
            )
        return LogitRows(
            of,
            logp.detach().masked_fill(~mask, 0.0),
            entropy.detach().masked_fill(~mask, 0.0),
            (leaf, logp, entropy),
        )
    from passk_fast.kernels.triton.logits import stats_kernel

    rows = logits.shape[0]
    stats = logits.new_empty((rows, 4), dtype=torch.float32)
    pointer, scalar, per_row = of.tau_arguments
    if rows:
        stats_kernel[row_grid(rows, logits.device)](
            logits, of.targets, mask, pointer, stats, logits.stride(0), rows, shard.num_columns,
            shard.first, shard.vocab, scalar, PER_ROW_TAU=per_row, SOFT_CAP=float(of.soft_cap),
            BLOCK=row_block(logits.shape[1], logits.device), num_warps=8,
        )  # fmt: skip
    whole = stats[None] if shard.size == 1 else shard.gather(stats)[0].view(shard.size, rows, 4)
    row_max, total, moment, d_y = whole.double().unbind(-1)  # each [shards, T]
    top = row_max.amax(dim=0)
    shift = row_max - top
    scale = shift.exp()
    mass = (total * scale).sum(dim=0)
    log_sum = mass.log()
    spread = torch.where(total == 0, 0.0, scale * (moment + total * shift)).sum(dim=0)
    entropy = (log_sum - spread / mass).masked_fill(~mask, 0.0)
    logp = (d_y.sum(dim=0) - top - log_sum).masked_fill(~mask, 0.0)
    return LogitRows(of, logp, entropy, (top, log_sum))


def logit_gradient(rows: LogitRows, slope: Tensor, bonus: Tensor | None, out: Tensor) -> Tensor:
    """Gradient [T, V_local] of sum(slope * logp - bonus * H) over rows.

    Written to `out` on the Triton path, which may be the logits themselves; rows whose slope and
    bonus are 0 get exact 0.
    """
    of = rows.of
    if of.backend == "torch":
        leaf, logp, entropy = rows.saved
        outputs, grads = [logp], [slope.to(logp.dtype)]
        if bonus is not None:
            outputs.append(entropy)
            grads.append(-bonus.to(entropy.dtype))
        return torch.autograd.grad(outputs, leaf, grads)[0]
    from passk_fast.kernels.triton.logits import gradient_kernel

    logits, shard = of.logits, of.shard
    top, log_sum = rows.saved
    count = logits.shape[0]
    pointer, scalar, per_row = of.tau_arguments
    if count:
        gradient_kernel[row_grid(count, logits.device)](
            logits, out, of.targets, pointer, top, log_sum, rows.entropy,
            slope.double().contiguous(), bonus, logits.stride(0), out.stride(0), count,
            shard.num_columns, logits.shape[1], shard.first, scalar, PER_ROW_TAU=per_row,
            HAS_BONUS=bonus is not None, SOFT_CAP=float(of.soft_cap),
            BLOCK=row_block(logits.shape[1], logits.device), num_warps=8,
        )  # fmt: skip
    return out
