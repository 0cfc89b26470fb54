"""Row mathematics in Triton: from a token's log-prob to its loss and its slope c = dLoss/dlogp.

    r = exp(logp - old_logp)                                     ratio (1 where old_logp is absent)
    w = min(exp(old_logp - rollout_logp), cap), 0 outside min..max      weight sampler -> trainer
    clip       term = -min(r A, clip(r) A), at most dual |A| where A < 0;   slope -r A, 0 if flat
    reinforce  term = -r A;                                                 slope -r A
    cispo      term = -clip(r) A logp, clip(r) without gradient;            slope -clip(r) A
    KL         k1: g, slope 1;   k2: g^2 / 2, slope g;   k3: exp(-g) - 1 + g, slope 1 - exp(-g)
               with g = logp - reference_logp
    c = (w slope + kl_coef slope_KL) / denominator
Everything is float64: rows are few beside logits, and exp(100) stays finite. The same function
serves the fused kernel from logits (a scalar row) and `row_kernel` (a block of rows).
Sequence-level ratios do not come here: they need sums over sequences (token_loss.py, torch).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from passk_fast.kernels.loss_rows import LossRows
from passk_fast.kernels.options import PolicyLoss

METRICS = (
    "loss_sum",
    "tokens",
    "entropy_sum",
    "ppo_kl_sum",
    "kl_sum",
    "ratio_sum",
    "clipped_low",
    "clipped_high",
    "dual_clipped",
    "tis_weight_sum",
    "tis_truncated",
    "importance_masked",
    "logprob_gap_sum",
    "logprob_gap_max",
)
NUM_METRICS = tl.constexpr(len(METRICS))
BLOCK_ROWS = 256


def option_constants(
    loss: PolicyLoss, old: Tensor | None, rollout: Tensor | None, reference: Tensor | None
) -> dict[str, Any]:
    """The options as compile-time constants of `token_terms`."""
    return {
        "OBJECTIVE": ("clip", "reinforce", "cispo").index(loss.objective),
        "KL": 0 if reference is None else ("k1", "k2", "k3").index(loss.kl_estimator) + 1,
        "CLIP_LOW": 1 - loss.clip_low,
        "CLIP_HIGH": 1 + loss.clip_high,
        "DUAL": float(loss.dual_clip),
        "CAP": float(loss.tis_clip),
        "MIN_WEIGHT": float(loss.importance_min),
        "MAX_WEIGHT": float(loss.importance_max),
        "KL_COEF": float(loss.kl_coef),
        "ENTROPY_COEF": float(loss.entropy_coef),
        "HAS_OLD": old is not None,
        "HAS_ROLLOUT": rollout is not None,
    }


@triton.jit
def token_terms(
    logp,
    entropy,
    old,
    advantage,
    rollout,
    reference,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL: tl.constexpr,
    CAP: tl.constexpr,
    MIN_WEIGHT: tl.constexpr,
    MAX_WEIGHT: tl.constexpr,
    KL_COEF: tl.constexpr,
    ENTROPY_COEF: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
):
    """(loss, slope, ratio, low, high, dual, weight, truncated, outside, kl); all inputs float64."""
    ratio = tl.exp(logp - old)
    too_high = ratio > CLIP_HIGH
    too_low = ratio < CLIP_LOW
    dual = (advantage < 0) & (ratio < 0)  # never
    high = dual
    low = dual
    if OBJECTIVE == 0:
        high = too_high & (advantage > 0)
        low = too_low & (advantage < 0)
        if DUAL > 0:
            dual = (ratio > DUAL) & (advantage < 0)
        bound = tl.where(high, CLIP_HIGH, tl.where(low, CLIP_LOW, ratio))
        bound = tl.where(dual, DUAL, bound)
        term = tl.where(advantage == 0, 0.0, -advantage * bound)
        flat = high | low | dual | (advantage == 0)
        slope = tl.where(flat, 0.0, -advantage * ratio)
    elif OBJECTIVE == 1:
        term = tl.where(advantage == 0, 0.0, -advantage * ratio)
        slope = term
    else:
        high = too_high
        low = too_low
        bound = tl.where(high, CLIP_HIGH, tl.where(low, CLIP_LOW, ratio))
        slope = -advantage * bound
        term = slope * logp
    weight = ratio * 0.0 + 1.0
    weight = tl.where(weight == 1.0, weight, 1.0)  # ratio may be inf
    truncated = (advantage < 0) & (ratio < 0)
    outside = truncated
    if HAS_ROLLOUT:
        raw = tl.exp(old - rollout)
        if CAP > 0:
            truncated = raw > CAP
            weight = tl.where(truncated, CAP, raw)
        if MIN_WEIGHT > 0:
            outside = raw < MIN_WEIGHT
        if MAX_WEIGHT > 0:
            outside = outside | (raw > MAX_WEIGHT)
        weight = tl.where(outside, 0.0, weight)
    loss = tl.where(weight == 0.0, 0.0, weight * term)
    slope = tl.where(weight == 0.0, 0.0, weight * slope)
    kl = weight * 0.0
    if KL > 0:
        gap = logp - reference
        if KL == 1:
            kl = gap
            kl_slope = weight * 0.0 + 1.0
        elif KL == 2:
            kl = 0.5 * gap * gap
            kl_slope = gap
        else:
            kl = tl.exp(-gap) - 1.0 + gap
            kl_slope = 1.0 - tl.exp(-gap)
        if KL_COEF > 0:
            loss += KL_COEF * kl
            slope += KL_COEF * kl_slope
    if ENTROPY_COEF > 0:
        loss -= ENTROPY_COEF * entropy
    return loss, slope, ratio, low, high, dual, weight, truncated, outside, kl


@triton.jit
def load_masked(pointer, offset, live, PRESENT: tl.constexpr):
    """A float64 value where the pointer is present and the row live, else 0."""
    value = live.to(tl.float64) * 0.0
    if PRESENT:
        value = tl.load(pointer + offset, mask=live, other=0.0).to(tl.float64)
    return value


@triton.jit
def _count(hit, live):
    return tl.sum(tl.where(hit & live, 1.0, 0.0).to(tl.float64), 0)


@triton.jit
def row_kernel(
    logp_ptr,
    entropy_ptr,
    old_ptr,
    advantage_ptr,
    mask_ptr,
    rollout_ptr,
    reference_ptr,
    slope_ptr,
    partial_ptr,
    num_rows,
    denominator_ptr,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr,
    DUAL: tl.constexpr,
    CAP: tl.constexpr,
    MIN_WEIGHT: tl.constexpr,
    MAX_WEIGHT: tl.constexpr,
    KL_COEF: tl.constexpr,
    ENTROPY_COEF: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
    METRIC_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Slopes [T] float64 and this block's metrics [METRIC_COUNT] float64."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < num_rows
    live = tl.load(mask_ptr + row, mask=live, other=0).to(tl.int1) & live
    logp = load_masked(logp_ptr, row, live, True)
    entropy = load_masked(entropy_ptr, row, live, True)
    advantage = load_masked(advantage_ptr, row, live, True)
    rollout = load_masked(rollout_ptr, row, live, HAS_ROLLOUT)
    reference = load_masked(reference_ptr, row, live, KL > 0)
    old = logp
    if HAS_OLD:
        old = load_masked(old_ptr, row, live, True)
    loss, slope, ratio, low, high, dual, weight, truncated, outside, kl = token_terms(
        logp, entropy, old, advantage, rollout, reference, OBJECTIVE, KL, CLIP_LOW, CLIP_HIGH,
        DUAL, CAP, MIN_WEIGHT, MAX_WEIGHT, KL_COEF, ENTROPY_COEF, HAS_OLD, HAS_ROLLOUT,
    )  # fmt: skip
    slope = tl.where(live, slope / tl.load(denominator_ptr), 0.0)
    tl.store(slope_ptr + row, slope, mask=row < num_rows)
    out = partial_ptr + tl.program_id(0) * METRIC_COUNT
    gap = tl.abs(logp - rollout) if HAS_ROLLOUT else logp * 0.0
    tl.store(out + 0, tl.sum(tl.where(live, loss, 0.0), 0))
    tl.store(out + 1, _count(live, live))
    tl.store(out + 2, tl.sum(entropy, 0))
    tl.store(out + 3, tl.sum(old - logp, 0))
    tl.store(out + 4, tl.sum(tl.where(live, kl, 0.0), 0))
    tl.store(out + 5, tl.sum(tl.where(live, ratio, 0.0), 0))
    tl.store(out + 6, _count(low, live))
    tl.store(out + 7, _count(high, live))
    tl.store(out + 8, _count(dual, live))
    tl.store(out + 9, tl.sum(tl.where(live, weight, 0.0), 0))
    tl.store(out + 10, _count(truncated, live))
    tl.store(out + 11, _count(outside, live))
    tl.store(out + 12, tl.sum(tl.where(live, gap, 0.0), 0))
    tl.store(out + 13, tl.max(tl.where(live, gap, 0.0), 0))


def row_terms(logp: Tensor, entropy: Tensor, rows: LossRows) -> tuple[Tensor, dict[str, Tensor]]:
    """Slopes c = dLoss/dlogp, float64 [T], and the metrics of `policy_loss_from_logprob`.

    Two runs are bitwise equal: blocks write partial sums, which one sum adds in order.
    """
    count = logp.shape[0]
    old, rollout, reference = rows.old_logp, rows.rollout_logp, rows.reference_logp
    blocks = max(1, triton.cdiv(count, BLOCK_ROWS))
    scale = torch.full((1,), rows.denominator, dtype=torch.float64, device=logp.device)
    slope = torch.empty(count, dtype=torch.float64, device=logp.device)
    partial = torch.zeros(blocks, len(METRICS), dtype=torch.float64, device=logp.device)
    if count:
        row_kernel[(blocks,)](
            logp, entropy, old, rows.advantages, rows.mask, rollout, reference,
            slope, partial, count, scale,
            **option_constants(rows.loss, old, rollout, reference),
            METRIC_COUNT=len(METRICS), BLOCK=BLOCK_ROWS, num_warps=4,
        )  # fmt: skip
    sums = partial.sum(dim=0)
    metrics = {name: sums[i] for i, name in enumerate(METRICS)}
    metrics["logprob_gap_max"] = partial[:, METRICS.index("logprob_gap_max")].max()
    return slope, metrics
