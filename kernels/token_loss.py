"""The token-level policy loss in torch, from log-probs; its slope is the kernels' coefficient.

Sources: PPO (arXiv 1707.06347), dual clip (1912.09729), clip-higher (2503.14476), CISPO
(2506.13585), GSPO (2507.18071), Schulman's KL estimators. Vectors over T packed tokens, float64:
[T] vectors cost nothing beside the logits, and exp(100) stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from passk_fast.kernels.inputs import LossRows
from passk_fast.kernels.metrics import TOKEN_METRICS
from passk_fast.kernels.options import DEFAULT_LOSS, PolicyLoss
from passk_fast.kernels.shapes import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """The `TokenTerms` of one call."""

    counted: Tensor
    logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    loss: Tensor
    kl: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor
    weight: Tensor
    truncated: Tensor
    masked: Tensor
    logprob_gap: Tensor


@dataclass(frozen=True, kw_only=True)
class _PolicyTerm:
    """The objective's term per token [T], and where it was clipped."""

    term: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor


def policy_loss_from_logprob(
    logp: Float[Tensor, " T"],
    entropy: Float[Tensor, " T"],
    rows: LossRows,
    loss: PolicyLoss = DEFAULT_LOSS,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Token-level policy loss: the masked sum over tokens, divided by `rows.denominator`.

    Per token, with r = exp(logp - old_logp):
        w * min(max(-r A, -clip(r, 1 - low, 1 + high) A), dual_clip |A| where A < 0)
        + kl_coef * KL - entropy_coef * H,
    w = min(exp(old_logp - rollout_logp), tis_clip), without gradient; 1 when that is off; 0 outside
    importance_min..importance_max. `PolicyLoss` says what other objectives put in place of the
    min-max.

    Args:
        logp: [T], log-probabilities under the policy, nats, with gradient.
        entropy: [T], nats, with gradient (used only with an entropy bonus).
        rows: the other vectors; `targets` and `row_index` are not read.
        loss: options.

    Returns:
        (loss, metrics): the loss is a scalar of logp's type; metrics are float64 scalars without
        gradient, as metrics.py declares them. `loss_sum` is not divided by the denominator.

    Raises:
        ValueError: an option lacks its input, or the denominator is not positive.
    """
    rows.check_options(loss)
    terms = _terms(logp, entropy, rows, loss)
    value = (terms.loss.sum() / rows.denominator).to(logp.dtype)
    return value, _metrics(terms)


def _metrics(terms: _Terms) -> dict[str, Tensor]:
    """The table's numbers over the rows that count."""
    found = {}
    for metric in TOKEN_METRICS:
        values = metric.value(terms).detach().masked_fill(~terms.counted, 0).double()
        if metric.reduction == "sum":
            found[metric.name] = values.sum()
        else:
            found[metric.name] = values.amax() if values.numel() else values.new_zeros(())
    return found


def _terms(logp: Tensor, entropy: Tensor, rows: LossRows, loss: PolicyLoss) -> _Terms:
    """Everything per token; differentiable in `logp` and `entropy`."""
    mask = rows.mask

    def inside(values: Tensor) -> Tensor:
        """float64, 0 outside the mask, whatever stands there."""
        return values.masked_fill(~mask, 0.0).double()

    old_logp = logp if rows.old_logp is None else rows.old_logp
    logp64, entropy64 = inside(logp), inside(entropy)
    old, advantage = inside(old_logp.detach()), inside(rows.advantages)
    log_ratio = logp64 - old
    if loss.ratio == "sequence":
        assert rows.sequence_index is not None
        log_ratio = _sequence_mean(log_ratio, mask, rows.sequence_index)
    policy = _policy_term(log_ratio, logp64, advantage, loss)
    sampler = None if rows.rollout_logp is None else inside(rows.rollout_logp.detach())
    weight, truncated, masked = _importance(old, sampler, mask, loss)
    total = torch.where(weight == 0, 0.0, weight * policy.term)
    kl = torch.zeros_like(total)
    if rows.reference_logp is not None:
        kl = _kl_term(logp64, inside(rows.reference_logp.detach()), loss.kl_estimator)
        if loss.kl_coef:
            total = total + loss.kl_coef * kl
    if loss.entropy_coef:
        total = total - loss.entropy_coef * entropy64
    gap = logp64.detach() - sampler if sampler is not None else torch.zeros_like(old)
    return _Terms(
        counted=mask,
        logp=logp64,
        old_logp=old,
        entropy=entropy64,
        loss=total,
        kl=kl,
        ratio=policy.ratio,
        clipped_low=policy.clipped_low,
        clipped_high=policy.clipped_high,
        dual_clipped=policy.dual_clipped,
        weight=weight,
        truncated=truncated,
        masked=masked,
        logprob_gap=gap.abs(),
    )


def _policy_term(
    log_ratio: Tensor, logp: Tensor, advantages: Tensor, loss: PolicyLoss
) -> _PolicyTerm:
    """clip: -min(r A, clip(r, 1 - low, 1 + high) A), at most dual_clip |A|.

    Written by cases so that a flat token has exactly zero gradient even where r overflows.
    """
    ratio = log_ratio.detach().exp()
    positive, negative = advantages > 0, advantages < 0
    high = positive & (ratio > 1 + loss.clip_high)
    low = negative & (ratio < 1 - loss.clip_low)
    dual = negative & (ratio > loss.dual_clip) if loss.dual_clip else torch.zeros_like(low)
    if loss.objective == "clip":
        bound = torch.ones_like(ratio)
        bound = bound.masked_fill(high, 1 + loss.clip_high).masked_fill(low, 1 - loss.clip_low)
        bound = bound.masked_fill(dual, loss.dual_clip)
        flat = high | low | dual | (advantages == 0)
        moving_ratio = log_ratio.masked_fill(flat, 0.0).exp()
        term = -advantages * torch.where(flat, bound, moving_ratio)
    elif loss.objective == "reinforce":
        term = -advantages * log_ratio.masked_fill(advantages == 0, 0.0).exp()
        high, low = torch.zeros_like(high), torch.zeros_like(low)
    else:  # cispo: the flags say which weights were cut
        high, low = ratio > 1 + loss.clip_high, ratio < 1 - loss.clip_low
        term = -ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high) * advantages * logp
    return _PolicyTerm(
        term=term, ratio=ratio, clipped_low=low, clipped_high=high, dual_clipped=dual
    )


def _sequence_mean(
    log_ratio: Float[Tensor, " T"], mask: Bool[Tensor, " T"], sequence_index: Int[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """Mean of the masked tokens' log-ratio over each token's sequence; differentiable.

    `sequence_index` < 0 (padding) must lie outside the mask.
    """
    index = sequence_index.long().clamp(min=0)
    size = int(index.max()) + 1 if index.numel() else 0
    counts = log_ratio.new_zeros(size).index_add(0, index, mask.to(log_ratio.dtype))
    sums = log_ratio.new_zeros(size).index_add(0, index, log_ratio.masked_fill(~mask, 0.0))
    return (sums / counts.clamp(min=1))[index].masked_fill(~mask, 0.0)


def _kl_term(logp: Tensor, reference_logp: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy || reference) per token [T], differentiable in `logp`."""
    gap = logp - reference_logp
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return 0.5 * gap.square()
    return torch.expm1(-gap) + gap


def _importance(
    old: Tensor, sampler: Tensor | None, mask: Tensor, loss: PolicyLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """Importance weights [T] (1 when off), and which were truncated or masked."""
    weight = torch.ones_like(old)
    truncated = outside = torch.zeros_like(mask)
    if loss.uses_importance and sampler is not None:
        raw = (old - sampler).exp()
        if loss.tis_clip:
            truncated = (raw > loss.tis_clip) & mask
            weight = raw.clamp(max=loss.tis_clip)
        outside = raw < loss.importance_min
        if loss.importance_max:
            outside |= raw > loss.importance_max
        outside &= mask
        weight = weight.masked_fill(outside, 0.0)
    return weight, truncated, outside
