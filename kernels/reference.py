"""Plain torch references of the loss kernels: the values and gradients every kernel must match.

Log-prob and entropy from vocab-parallel logits, then the token-level policy loss. Needs torch
alone. Everything is separable by token, in packed order: T tokens, V vocabulary columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Temporaries are made a block of rows at a time, of at most about this many elements."""

MAX_METRICS = frozenset({"logprob_gap_max"})
"""Metrics that combine over ranks and micro-batches by MAX; every other one by SUM."""


@dataclass(frozen=True)
class PolicyLoss:
    """Options of the token loss. Example: PolicyLoss(clip_high=0.28) is DAPO's clip-higher."""

    clip_low: float = 0.2
    """A negative advantage stops pushing once the ratio is below 1 - clip_low; in [0, 1)."""
    clip_high: float = 0.2
    """A positive advantage stops pushing once the ratio is above 1 + clip_high."""
    dual_clip: float = 0.0
    """A token's policy loss with a negative advantage is at most dual_clip * |A|; 0 is off."""
    importance_cap: float = 0.0
    """Cap of the truncated importance weight trainer / sampler (TIS); 0 is off."""
    kl_coef: float = 0.0
    """Weight of the KL term to the reference policy; 0 is off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators. As a loss term only k2 has the gradient of the reverse KL in
    expectation over the policy's own samples: k1's gradient is zero, k3's is that of
    KL(reference || policy)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; 0 is off."""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "importance_cap", "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"PolicyLoss.{name} must be finite and 0 or more, got {value}.")
        if self.clip_low >= 1:
            raise ValueError(f"PolicyLoss.clip_low must be below 1, got {self.clip_low}.")
        if self.dual_clip != 0 and not self.dual_clip > 1:
            raise ValueError(f"PolicyLoss.dual_clip must be 0 or above 1, got {self.dual_clip}.")
        if self.kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(
                f"PolicyLoss.kl_estimator must be k1, k2 or k3, got {self.kl_estimator!r}."
            )


@dataclass(frozen=True)
class _Shard:
    """This rank's columns: `num_columns` true ones, the first of which is column `first`."""

    group: Any
    first: int
    num_columns: int
    vocab: int


def _shard_of(local_width: int, group: Any, vocab: int | None) -> _Shard:
    """Place a shard of `local_width` columns in the vocabulary."""
    size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    padded = size * local_width
    true_vocab = padded if vocab is None else vocab
    if not 0 < true_vocab <= padded:
        raise ValueError(f"vocab must be in 1..{padded} (shards x local columns), got {vocab}.")
    first = rank * local_width
    return _Shard(group, first, max(0, min(local_width, true_vocab - first)), true_vocab)


def _row_blocks(logits: Tensor, num_columns: int) -> list[slice]:
    """Split the rows into blocks of about CHUNK_ELEMENTS elements."""
    num_rows = logits.shape[0]
    step = max(1, CHUNK_ELEMENTS // max(1, num_columns))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _row_max(logits: Tensor, shard: _Shard, dtype: torch.dtype) -> Tensor:
    """Largest true logit of each row over all ranks, [T]."""
    if shard.num_columns:
        row_max = logits[:, : shard.num_columns].amax(dim=1).to(dtype)
    else:
        row_max = logits.new_full((logits.shape[0],), -torch.inf, dtype=dtype)
    if shard.group is not None:
        dist.all_reduce(row_max, op=dist.ReduceOp.MAX, group=shard.group)
    return row_max


def _owned(targets: Tensor, shard: _Shard) -> tuple[Tensor, Tensor]:
    """Which rows' targets lie in this shard [T], and their local columns (0 elsewhere) [T]."""
    local = targets - shard.first
    owned = (local >= 0) & (local < shard.num_columns)
    return owned, local.masked_fill(~owned, 0)


def _scaled(
    logits: Tensor, rows: slice, shard: _Shard, row_max: Tensor, temperature: float
) -> Tensor:
    """(z - max z) / temperature of a block of rows, true columns only; -inf becomes finite."""
    block = logits[rows, : shard.num_columns].to(row_max.dtype)
    scaled = (block - row_max[rows, None]).div_(temperature)
    return scaled.clamp_(min=-1e30)


class _TokenLogprob(torch.autograd.Function):
    """Keeps the caller's logits and three [T] vectors for backward; no extra [T, V] tensor."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, shard: _Shard
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        row_max = _row_max(logits, shard, dtype)
        # Rows: S = sum exp(d), U = sum exp(d) d, d_y; d = (z - max) / tau.
        stats = logits.new_zeros((3, logits.shape[0]), dtype=dtype)
        owned, column = _owned(targets, shard)
        if shard.num_columns:
            for rows in _row_blocks(logits, shard.num_columns):
                scaled = _scaled(logits, rows, shard, row_max, temperature)
                stats[2, rows] = scaled.gather(1, column[rows, None])[:, 0]
                weight = scaled.exp()
                stats[0, rows] = weight.sum(dim=1)
                stats[1, rows] = weight.mul_(scaled).sum(dim=1)
        stats[2].masked_fill_(~owned, 0.0)
        if shard.group is not None:
            dist.all_reduce(stats, op=dist.ReduceOp.SUM, group=shard.group)
        log_sum = stats[0].log()
        entropy = log_sum - stats[1] / stats[0]
        known = (targets >= 0) & (targets < shard.vocab)
        logp = (stats[2] - log_sum).masked_fill_(~known, torch.nan)
        ctx.save_for_backward(logits, targets, row_max, log_sum, entropy)
        ctx.temperature, ctx.shard = temperature, shard
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        """d logp_y / dz = (1[y] - p) / tau;  dH / dz_j = -p_j (ln p_j + H) / tau."""
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None
        logits, targets, row_max, log_sum, entropy = ctx.saved_tensors
        shard, temperature = ctx.shard, ctx.temperature
        grad_logp = torch.zeros_like(entropy) if grad_logp is None else grad_logp
        grad_logits = torch.zeros_like(logits)
        if not shard.num_columns:
            return grad_logits, None, None, None
        dead = grad_logp == 0
        if grad_entropy is not None:
            dead &= grad_entropy == 0
        owned, column = _owned(targets, shard)
        at_target = grad_logp.masked_fill(~owned, 0.0)
        for rows in _row_blocks(logits, shard.num_columns):
            scaled = _scaled(logits, rows, shard, row_max, temperature)
            log_prob = scaled.sub_(log_sum[rows, None])
            grad = log_prob.exp().neg_()
            if grad_entropy is None:
                grad.mul_(grad_logp[rows, None])
            else:
                tilt = log_prob.add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
                grad.mul_(tilt.add_(grad_logp[rows, None]))
            grad.scatter_add_(1, column[rows, None], at_target[rows, None])
            # A row without upstream gradient gets exactly zero, whatever its logits hold.
            grad.div_(temperature).masked_fill_(dead[rows, None], 0.0)
            grad_logits[rows, : shard.num_columns] = grad.to(logits.dtype)
        return grad_logits, None, None, None


def token_logprob_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    group: Any = None,
    vocab: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, in nats; both differentiable.

    Args:
        logits: [T, V_local], any float type. With `group`, this rank's shard: rank r of the group
            holds columns r * V_local to (r + 1) * V_local - 1 of the padded vocabulary.
        targets: integer [T], columns of the whole vocabulary, the same on every rank.
        temperature: logits are divided by it; above zero.
        group: the tensor-parallel process group, or None when the vocabulary is not sharded.
        vocab: true vocabulary size; columns from it on are padding, stay out of the softmax
            whatever they hold, and get zero gradient. None: no padding.

    Returns:
        (logp [T], entropy [T]), float32, or float64 where the logits are; equal on every rank.
        A target outside 0..vocab-1 gives a NaN logp. A row whose upstream gradients are zero gets
        exactly zero gradient. Forward makes one MAX and one SUM all-reduce, backward none: every
        rank must carry the same upstream gradient.

    Raises:
        ValueError: a shape, the temperature or `vocab` is out of range.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [T, V] and targets [T], got {tuple(logits.shape)} "
            f"and {tuple(targets.shape)}."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above zero, got {temperature}.")
    shard = _shard_of(logits.shape[1], group, vocab)
    return _TokenLogprob.apply(logits, targets.long(), float(temperature), shard)


def _policy_term(
    log_ratio: Tensor, advantages: Tensor, loss: PolicyLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A), at most dual_clip |A|; per token [T], and counts.

    Written by cases so that a flat token has exactly zero gradient even where r overflows.
    """
    ratio = log_ratio.detach().exp()
    positive, negative = advantages > 0, advantages < 0
    high = positive & (ratio > 1 + loss.clip_high)
    low = negative & (ratio < 1 - loss.clip_low)
    dual = negative & (ratio > loss.dual_clip) if loss.dual_clip else torch.zeros_like(low)
    bound = torch.ones_like(ratio)
    bound = bound.masked_fill(high, 1 + loss.clip_high).masked_fill(low, 1 - loss.clip_low)
    bound = bound.masked_fill(dual, loss.dual_clip)
    flat = high | low | dual | (advantages == 0)
    live_ratio = log_ratio.masked_fill(flat, 0.0).exp()
    term = -advantages * torch.where(flat, bound, live_ratio)
    counts = {"clipped_low": low, "clipped_high": high, "dual_clipped": dual}
    return term, {"ratio_sum": ratio.sum(), **{key: hit.sum() for key, hit in counts.items()}}


def _kl_term(logp: Tensor, reference_logp: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy || reference) per token [T], differentiable in `logp`."""
    gap = logp - reference_logp
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return 0.5 * gap.square()
    return torch.expm1(-gap) + gap


def _check_options(
    loss: PolicyLoss, rollout_logp: Tensor | None, reference_logp: Tensor | None, denominator: float
) -> None:
    """Refuse an option that cannot take effect."""
    if loss.importance_cap and rollout_logp is None:
        raise ValueError("PolicyLoss.importance_cap needs rollout_logp, got None.")
    if loss.kl_coef and reference_logp is None:
        raise ValueError("PolicyLoss.kl_coef needs reference_logp, got None.")
    if not (math.isfinite(denominator) and denominator > 0):
        raise ValueError(f"denominator must be finite and above zero, got {denominator}.")


def policy_loss_from_logprob(
    logp: Tensor,
    entropy: Tensor,
    *,
    old_logp: Tensor,
    rollout_logp: Tensor | None,
    reference_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    denominator: float,
    loss: PolicyLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-level policy loss: the masked sum over tokens, divided by `denominator`.

    Per token, with r = exp(logp - old_logp):
        w * min(max(-r A, -clip(r, 1 - low, 1 + high) A), dual_clip |A| where A < 0)
        + kl_coef * KL - entropy_coef * H,
    w = min(exp(old_logp - rollout_logp), importance_cap), without gradient; 1 when the cap is off.

    Args:
        logp: [T], log-probabilities under the policy, with gradient.
        entropy: [T], nats, with gradient (used only with an entropy bonus).
        old_logp: [T], the trainer's log-probs before the update; `logp.detach()` when strictly
            on-policy, which makes every ratio 1 exactly.
        rollout_logp: [T], the sampler's log-probs, or None.
        reference_logp: [T], the reference model's log-probs, or None.
        advantages: [T].
        mask: bool [T]; rows outside it add exactly 0 to loss, gradient and metrics, even where
            they hold NaN or infinity.
        denominator: the step's global denominator, fixed before packing.
        loss: options.

    Returns:
        (loss, metrics): the loss is a scalar of logp's type. Metrics are float64 sums over the
        masked tokens without gradient, so they add over micro-batches and ranks; those named in
        MAX_METRICS combine by maximum. `loss_sum` is not divided by the denominator.

    Raises:
        ValueError: an option lacks its input, or the denominator is not positive.
    """
    _check_options(loss, rollout_logp, reference_logp, denominator)
    mask = mask.bool()

    # float64: [T] vectors cost nothing beside the logits, and exp(100) stays finite.
    def live(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0.0).double()

    logp64, entropy64, old, advantage = map(live, (logp, entropy, old_logp.detach(), advantages))
    term, metrics = _policy_term(logp64 - old, advantage, loss)
    # A row outside the mask has ratio 1; it does not count.
    metrics["ratio_sum"] = metrics["ratio_sum"] - (~mask).sum()
    weight, tis_metrics = _importance(old, rollout_logp, mask, live, loss.importance_cap)
    total = weight * term
    kl = torch.zeros_like(total)
    if reference_logp is not None:
        kl = _kl_term(logp64, live(reference_logp.detach()), loss.kl_estimator)
        if loss.kl_coef:
            total = total + loss.kl_coef * kl
    if loss.entropy_coef:
        total = total - loss.entropy_coef * entropy64
    loss_sum = total.sum()
    metrics |= tis_metrics | _gap_metrics(logp64.detach(), rollout_logp, live)
    metrics |= {
        "loss_sum": loss_sum,
        "tokens": mask.sum(),
        "entropy_sum": entropy64.sum(),
        "ppo_kl_sum": (old - logp64).sum(),
        "kl_sum": kl.sum(),
    }
    scalars = {key: value.detach().double() for key, value in metrics.items()}
    return (loss_sum / denominator).to(logp.dtype), scalars


def _importance(
    old: Tensor, rollout_logp: Tensor | None, mask: Tensor, live: Any, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Truncated importance weights [T] (1 when off), with their sum and how many were cut."""
    weight = torch.ones_like(old)
    truncated = torch.zeros_like(mask)
    if cap and rollout_logp is not None:
        raw = (old - live(rollout_logp.detach())).exp()
        truncated = (raw > cap) & mask
        weight = raw.clamp(max=cap)
    return weight, {
        "tis_weight_sum": weight.masked_fill(~mask, 0.0).sum(),
        "tis_truncated": truncated.sum(),
    }


def _gap_metrics(logp: Tensor, rollout_logp: Tensor | None, live: Any) -> dict[str, Tensor]:
    """Sum and maximum of |trainer - sampler| log-prob; zero when there is no sampler."""
    if rollout_logp is None or not logp.numel():
        zero = logp.new_zeros(())
        return {"logprob_gap_sum": zero, "logprob_gap_max": zero}
    gap = (logp - live(rollout_logp.detach())).abs()
    return {"logprob_gap_sum": gap.sum(), "logprob_gap_max": gap.max()}
