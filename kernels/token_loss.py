"""The token-level policy loss in torch, from log-probs; its slope is the kernels' coefficient.

Sources: PPO (arXiv 1707.06347), dual clip (1912.09729), clip-higher (2503.14476), CISPO
(2506.13585), GSPO (2507.18071), Schulman's KL estimators. Vectors over T packed tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.options import PolicyLoss


def _policy_term(
    log_ratio: Tensor, logp: Tensor, advantages: Tensor, loss: PolicyLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's term per token [T], and counts.

    clip: -min(r A, clip(r, 1 - low, 1 + high) A), at most dual_clip |A|. Written by cases so that
    a flat token has exactly zero gradient even where r overflows.
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
        live_ratio = log_ratio.masked_fill(flat, 0.0).exp()
        term = -advantages * torch.where(flat, bound, live_ratio)
    elif loss.objective == "reinforce":
        term = -advantages * log_ratio.masked_fill(advantages == 0, 0.0).exp()
        high, low = torch.zeros_like(high), torch.zeros_like(low)
    else:  # cispo: counts say how many weights were cut
        high, low = ratio > 1 + loss.clip_high, ratio < 1 - loss.clip_low
        term = -ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high) * advantages * logp
    counts = {"clipped_low": low, "clipped_high": high, "dual_clipped": dual}
    return term, {"ratio_sum": ratio.sum(), **{key: hit.sum() for key, hit in counts.items()}}


def _sequence_mean(log_ratio: Tensor, mask: Tensor, sequence_index: Tensor) -> Tensor:
    """Mean of the masked tokens' log-ratio over each token's sequence [T]; differentiable.

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


def check_options(
    loss: PolicyLoss,
    rollout_logp: Tensor | None,
    reference_logp: Tensor | None,
    denominator: float,
    sequence_index: Tensor | None = None,
) -> None:
    """ValueError for an option that cannot take effect."""
    for name in ("tis_clip", "importance_min", "importance_max"):
        if getattr(loss, name) and rollout_logp is None:
            raise ValueError(f"PolicyLoss.{name} needs rollout_logp, got None.")
    if loss.ratio == "sequence" and sequence_index is None:
        raise ValueError("PolicyLoss.ratio = 'sequence' needs sequence_index, got None.")
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
    sequence_index: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-level policy loss: the masked sum over tokens, divided by `denominator`.

    Per token, with r = exp(logp - old_logp):
        w * min(max(-r A, -clip(r, 1 - low, 1 + high) A), dual_clip |A| where A < 0)
        + kl_coef * KL - entropy_coef * H,
    w = min(exp(old_logp - rollout_logp), tis_clip), without gradient; 1 when the cap is off;
    0 outside importance_min..importance_max. `PolicyLoss` says what other objectives put in place
    of the min-max.

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
        sequence_index: integer [T], which sequence a token belongs to (sequence-level ratio).

    Returns:
        (loss, metrics): the loss is a scalar of logp's type. Metrics are float64 sums over the
        masked tokens without gradient, so they add over micro-batches and ranks; those named in
        MAX_METRICS combine by maximum. `loss_sum` is not divided by the denominator.

    Raises:
        ValueError: an option lacks its input, or the denominator is not positive.
    """
    check_options(loss, rollout_logp, reference_logp, denominator, sequence_index)
    mask = mask.bool()

    # float64: [T] vectors cost nothing beside the logits, and exp(100) stays finite.
    def live(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0.0).double()

    logp64, entropy64, old, advantage = map(live, (logp, entropy, old_logp.detach(), advantages))
    log_ratio = logp64 - old
    if loss.ratio == "sequence":
        assert sequence_index is not None
        log_ratio = _sequence_mean(log_ratio, mask, sequence_index)
    term, metrics = _policy_term(log_ratio, logp64, advantage, loss)
    # A row outside the mask has ratio 1; it does not count.
    metrics["ratio_sum"] = metrics["ratio_sum"] - (~mask).sum()
    weight, tis_metrics = _importance(old, rollout_logp, mask, live, loss)
    total = torch.where(weight == 0, 0.0, weight * term)
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
    old: Tensor, rollout_logp: Tensor | None, mask: Tensor, live: Any, loss: PolicyLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Importance weights [T] (1 when off), their sum, and how many were cut or masked."""
    weight = torch.ones_like(old)
    truncated = outside = torch.zeros_like(mask)
    if loss.uses_importance and rollout_logp is not None:
        raw = (old - live(rollout_logp.detach())).exp()
        if loss.tis_clip:
            truncated = (raw > loss.tis_clip) & mask
            weight = raw.clamp(max=loss.tis_clip)
        outside = raw < loss.importance_min
        if loss.importance_max:
            outside |= raw > loss.importance_max
        outside &= mask
        weight = weight.masked_fill(outside, 0.0)
    return weight, {
        "tis_weight_sum": weight.masked_fill(~mask, 0.0).sum(),
        "tis_truncated": truncated.sum(),
        "importance_masked": outside.sum(),
    }


def _gap_metrics(logp: Tensor, rollout_logp: Tensor | None, live: Any) -> dict[str, Tensor]:
    """Sum and maximum of |trainer - sampler| log-prob; zero when there is no sampler."""
    if rollout_logp is None or not logp.numel():
        zero = logp.new_zeros(())
        return {"logprob_gap_sum": zero, "logprob_gap_max": zero}
    gap = (logp - live(rollout_logp.detach())).abs()
    return {"logprob_gap_sum": gap.sum(), "logprob_gap_max": gap.max()}
