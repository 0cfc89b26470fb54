"""Log-prob and entropy from vocab-parallel logits in plain torch: the path for CPU training.

Everything is separable by token, in packed order: T tokens, V vocabulary columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.shapes import Float, Group, Int
from passk_fast.kernels.shard import Shard, as_temperature, shard_of
from passk_fast.kernels.soft_cap import check_soft_cap, soft_cap_slope, soft_capped

CHUNK_ELEMENTS = 1 << 22
"""Temporaries are made a block of rows at a time, of at most about this many elements."""


def _row_blocks(logits: Tensor, num_columns: int) -> list[slice]:
    """Split the rows into blocks of about CHUNK_ELEMENTS elements."""
    num_rows = logits.shape[0]
    step = max(1, CHUNK_ELEMENTS // max(1, num_columns))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _row_max(logits: Tensor, shard: Shard, dtype: torch.dtype, soft_cap: float) -> Tensor:
    """Largest true logit of each row over all ranks, [T]."""
    if shard.num_columns:
        row_max = soft_capped(logits[:, : shard.num_columns].amax(dim=1).to(dtype), soft_cap)
    else:
        row_max = logits.new_full((logits.shape[0],), -torch.inf, dtype=dtype)
    shard.max(row_max)
    return row_max


def _of_rows(temperature: float | Tensor, rows: slice) -> float | Tensor:
    """The temperature of a block of rows, to be broadcast over columns."""
    return temperature[rows, None] if isinstance(temperature, Tensor) else temperature


def _capped(
    logits: Tensor, rows: slice, shard: Shard, dtype: torch.dtype, soft_cap: float
) -> Tensor:
    """A block of rows under the soft cap, true columns only."""
    return soft_capped(logits[rows, : shard.num_columns].to(dtype), soft_cap)


def _scaled(block: Tensor, rows: slice, row_max: Tensor, temperature: float | Tensor) -> Tensor:
    """(z - max z) / temperature of a block of rows; -inf becomes finite."""
    scaled = (block - row_max[rows, None]).div_(_of_rows(temperature, rows))
    return scaled.clamp_(min=-1e30)


class _TokenLogprob(torch.autograd.Function):
    """Keeps the caller's logits and three [T] vectors for backward; no extra [T, V] tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        temperature: float | Tensor,
        shard: Shard,
        soft_cap: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        row_max = _row_max(logits, shard, dtype, soft_cap)
        # Rows: S = sum exp(d), U = sum exp(d) d, d_y; d = (z - max) / tau.
        stats = logits.new_zeros((3, logits.shape[0]), dtype=dtype)
        owned, column = shard.owned(targets)
        if shard.num_columns:
            for rows in _row_blocks(logits, shard.num_columns):
                block = _capped(logits, rows, shard, dtype, soft_cap)
                scaled = _scaled(block, rows, row_max, temperature)
                stats[2, rows] = scaled.gather(1, column[rows, None])[:, 0]
                weight = scaled.exp()
                stats[0, rows] = weight.sum(dim=1)
                stats[1, rows] = weight.mul_(scaled).sum(dim=1)
        stats[2].masked_fill_(~owned, 0.0)
        shard.sum(stats)
        log_sum = stats[0].log()
        entropy = log_sum - stats[1] / stats[0]
        known = (targets >= 0) & (targets < shard.vocab)
        logp = (stats[2] - log_sum).masked_fill_(~known, torch.nan)
        ctx.save_for_backward(logits, targets, row_max, log_sum, entropy)
        ctx.temperature, ctx.shard, ctx.soft_cap = temperature, shard, soft_cap
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        """d logp_y / dz = (1[y] - p) / tau;  dH / dz_j = -p_j (ln p_j + H) / tau; under a soft
        cap these are slopes in the capped logits, and each is multiplied by the cap's."""
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        logits, targets, row_max, log_sum, entropy = ctx.saved_tensors
        shard, temperature, soft_cap = ctx.shard, ctx.temperature, ctx.soft_cap
        grad_logp = torch.zeros_like(entropy) if grad_logp is None else grad_logp
        grad_logits = torch.zeros_like(logits)
        if not shard.num_columns:
            return grad_logits, None, None, None, None
        flat = grad_logp == 0
        if grad_entropy is not None:
            flat &= grad_entropy == 0
        owned, column = shard.owned(targets)
        at_target = grad_logp.masked_fill(~owned, 0.0)
        for rows in _row_blocks(logits, shard.num_columns):
            block = _capped(logits, rows, shard, row_max.dtype, soft_cap)
            scaled = _scaled(block, rows, row_max, temperature)
            log_prob = scaled.sub_(log_sum[rows, None])
            grad = log_prob.exp().neg_()
            if grad_entropy is None:
                grad.mul_(grad_logp[rows, None])
            else:
                tilt = log_prob.add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
                grad.mul_(tilt.add_(grad_logp[rows, None]))
            grad.scatter_add_(1, column[rows, None], at_target[rows, None])
            if soft_cap:
                grad.mul_(soft_cap_slope(block, soft_cap))
            # A row without upstream gradient gets exactly zero, whatever its logits hold.
            grad.div_(_of_rows(temperature, rows)).masked_fill_(flat[rows, None], 0.0)
            grad_logits[rows, : shard.num_columns] = grad.to(logits.dtype)
        return grad_logits, None, None, None, None


_apply: Callable[..., tuple[Tensor, Tensor]] = _TokenLogprob.apply


def token_logprob_from_logits(
    logits: Float[Tensor, "T V"],
    targets: Int[Tensor, " T"],
    *,
    temperature: float | Float[Tensor, " T"] = 1.0,
    group: Group = None,
    vocab: int | None = None,
    soft_cap: float = 0.0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Log-probability of each target and entropy of each row, in nats; both differentiable.

    Args:
        logits: [T, V_local], any float type. With `group`, this rank's shard: rank r of the group
            holds columns r * V_local to (r + 1) * V_local - 1 of the padded vocabulary.
        targets: integer [T], columns of the whole vocabulary, the same on every rank.
        temperature: logits are divided by it; above zero; a number or [T].
        group: the tensor-parallel process group, or None when the vocabulary is not sharded.
        vocab: true vocabulary size; columns from it on are padding, stay out of the softmax
            whatever they hold, and get zero gradient. None: no padding.
        soft_cap: logits z become soft_cap tanh(z / soft_cap) first; 0 is off.

    Returns:
        (logp [T], entropy [T]), float32, or float64 where the logits are; equal on every rank.
        A target outside 0..vocab-1 gives a NaN logp. A row whose upstream gradients are zero gets
        exactly zero gradient. Forward makes one MAX and one SUM all-reduce, backward none: every
        rank must carry the same upstream gradient.

    Raises:
        ValueError: a shape, the temperature, `vocab` or `soft_cap` is out of range.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [T, V] and targets [T], got {tuple(logits.shape)} "
            f"and {tuple(targets.shape)}."
        )
    shard = shard_of(logits.shape[1], group, vocab)
    check_soft_cap(soft_cap)
    temperature = as_temperature(temperature, logits.shape[0], logits.device)
    return _apply(logits, targets.long(), temperature, shard, soft_cap)
