"""Row mathematics in Triton: from a token's log-prob to its loss and its slope c = dLoss/dlogp.

The same function serves the fused kernel from logits (a scalar row) and `row_kernel` (a block of
rows). Sequence-level ratios need sums over sequences and are torch's (token_loss.py).
"""

# r = exp(logp - old_logp)                                     ratio (1 where old_logp is absent)
# w = min(exp(old_logp - rollout_logp), cap), 0 outside min..max      weight sampler -> trainer
# clip       term = -min(r A, clip(r) A), at most dual |A| where A < 0;   slope -r A, 0 if flat
# reinforce  term = -r A;                                                 slope -r A
# cispo      term = -clip(r) A logp, clip(r) without gradient;            slope -clip(r) A
# KL         k1: g, slope 1;   k2: g^2 / 2, slope g;   k3: exp(-g) - 1 + g, slope 1 - exp(-g)
#            with g = logp - reference_logp
# c = (w slope + kl_coef slope_KL) / denominator
# Everything is float64: rows are few beside logits, and exp(100) stays finite.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from passk_fast.kernels.inputs import LossRows
from passk_fast.kernels.metrics import TOKEN_METRICS
from passk_fast.kernels.options import PolicyLoss

METRICS = tuple(metric.name for metric in TOKEN_METRICS)
BLOCK_ROWS = 256


def _slot(name: str) -> tl.constexpr:
    """Where a metric stands in a block's partial results."""
    return tl.constexpr(METRICS.index(name))


LOSS_SUM = _slot("loss_sum")
TOKENS = _slot("tokens")
ENTROPY_SUM = _slot("entropy_sum")
PPO_KL_SUM = _slot("ppo_kl_sum")
KL_SUM = _slot("kl_sum")
RATIO_SUM = _slot("ratio_sum")
CLIPPED_LOW = _slot("clipped_low")
CLIPPED_HIGH = _slot("clipped_high")
DUAL_CLIPPED = _slot("dual_clipped")
TIS_WEIGHT_SUM = _slot("tis_weight_sum")
TIS_TRUNCATED = _slot("tis_truncated")
IMPORTANCE_MASKED = _slot("importance_masked")
LOGPROB_GAP_SUM = _slot("logprob_gap_sum")
LOGPROB_GAP_MAX = _slot("logprob_gap_max")


def option_constants(loss: PolicyLoss, rows: LossRows) -> dict[str, int | float | bool]:
    """The options as compile-time constants of `token_terms`, with which vectors are given."""
    kl = 0
    if rows.reference_logp is not None:
        kl = ("k1", "k2", "k3").index(loss.kl_estimator) + 1
    return {
        "OBJECTIVE": ("clip", "reinforce", "cispo").index(loss.objective),
        "KL": kl,
        "CLIP_LOW": 1 - loss.clip_low,
        "CLIP_HIGH": 1 + loss.clip_high,
        "DUAL": float(loss.dual_clip),
        "CAP": float(loss.tis_clip),
        "MIN_WEIGHT": float(loss.importance_min),
        "MAX_WEIGHT": float(loss.importance_max),
        "KL_COEF": float(loss.kl_coef),
        "ENTROPY_COEF": float(loss.entropy_coef),
        "HAS_OLD": rows.old_logp is not None,
        "HAS_ROLLOUT": rows.rollout_logp is not None,
    }


@triton.jit
def policy_term(
    logp, ratio, advantage, OBJECTIVE: tl.constexpr, CLIP_LOW: tl.constexpr,
    CLIP_HIGH: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """(term, slope, low, high, dual) of the objective, without its importance weight."""
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
    return term, slope, low, high, dual


@triton.jit
def importance_weight(
    old, rollout, ratio, CAP: tl.constexpr, MIN_WEIGHT: tl.constexpr, MAX_WEIGHT: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
):  # fmt: skip
    """(weight, truncated, outside): 1 and no flags without a sampler's log-probs."""
    weight = ratio * 0.0 + 1.0
    weight = tl.where(weight == 1.0, weight, 1.0)  # ratio may be inf
    truncated = ratio < 0  # never
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
    return weight, truncated, outside


@triton.jit
def kl_term(logp, reference, zero, KL: tl.constexpr):
    """(KL estimate, its slope in logp); both the float64 `zero` without a reference."""
    kl = zero
    slope = zero
    if KL > 0:
        gap = logp - reference
        if KL == 1:
            kl = gap
            slope = zero + 1.0
        elif KL == 2:
            kl = 0.5 * gap * gap
            slope = gap
        else:
            kl = tl.exp(-gap) - 1.0 + gap
            slope = 1.0 - tl.exp(-gap)
    return kl, slope


@triton.jit
def token_terms(
    logp, entropy, old, advantage, rollout, reference,
    OBJECTIVE: tl.constexpr, KL: tl.constexpr, CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr,
    DUAL: tl.constexpr, CAP: tl.constexpr, MIN_WEIGHT: tl.constexpr, MAX_WEIGHT: tl.constexpr,
    KL_COEF: tl.constexpr, ENTROPY_COEF: tl.constexpr, HAS_ROLLOUT: tl.constexpr,
):  # fmt: skip
    """(loss, slope, ratio, low, high, dual, weight, truncated, outside, kl); all inputs float64."""
    ratio = tl.exp(logp - old)
    term, slope, low, high, dual = policy_term(
        logp, ratio, advantage, OBJECTIVE, CLIP_LOW, CLIP_HIGH, DUAL
    )
    weight, truncated, outside = importance_weight(
        old, rollout, ratio, CAP, MIN_WEIGHT, MAX_WEIGHT, HAS_ROLLOUT
    )
    loss = tl.where(weight == 0.0, 0.0, weight * term)
    slope = tl.where(weight == 0.0, 0.0, weight * slope)
    kl, kl_slope = kl_term(logp, reference, weight * 0.0, KL)
    if KL_COEF > 0:
        loss += KL_COEF * kl
        slope += KL_COEF * kl_slope
    if ENTROPY_COEF > 0:
        loss -= ENTROPY_COEF * entropy
    return loss, slope, ratio, low, high, dual, weight, truncated, outside, kl


@triton.jit
def load_masked(pointer, offset, counted, PRESENT: tl.constexpr):
    """A float64 value where the pointer is present and the row counts, else 0."""
    value = counted.to(tl.float64) * 0.0
    if PRESENT:
        value = tl.load(pointer + offset, mask=counted, other=0.0).to(tl.float64)
    return value


@triton.jit
def count_rows(hit, counted):
    """How many rows that count have `hit`, float64."""
    return tl.sum(tl.where(hit & counted, 1.0, 0.0).to(tl.float64), 0)


@triton.jit
def sum_rows(value, counted):
    """Sum of `value` over the rows that count."""
    return tl.sum(tl.where(counted, value, 0.0), 0)


@triton.jit
def row_kernel(
    logp_ptr, entropy_ptr, old_ptr, advantage_ptr, mask_ptr, rollout_ptr, reference_ptr,
    slope_ptr, partial_ptr, num_rows, denominator_ptr,
    OBJECTIVE: tl.constexpr, KL: tl.constexpr, CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr,
    DUAL: tl.constexpr, CAP: tl.constexpr, MIN_WEIGHT: tl.constexpr, MAX_WEIGHT: tl.constexpr,
    KL_COEF: tl.constexpr, ENTROPY_COEF: tl.constexpr, HAS_OLD: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr, METRIC_COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slopes [T] float64 and this block's metrics [METRIC_COUNT] float64."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    counted = tl.load(mask_ptr + row, mask=inside, other=0).to(tl.int1) & inside
    logp = load_masked(logp_ptr, row, counted, True)
    entropy = load_masked(entropy_ptr, row, counted, True)
    advantage = load_masked(advantage_ptr, row, counted, True)
    rollout = load_masked(rollout_ptr, row, counted, HAS_ROLLOUT)
    reference = load_masked(reference_ptr, row, counted, KL > 0)
    old = logp
    if HAS_OLD:
        old = load_masked(old_ptr, row, counted, True)
    loss, slope, ratio, low, high, dual, weight, truncated, outside, kl = token_terms(
        logp, entropy, old, advantage, rollout, reference, OBJECTIVE, KL, CLIP_LOW, CLIP_HIGH,
        DUAL, CAP, MIN_WEIGHT, MAX_WEIGHT, KL_COEF, ENTROPY_COEF, HAS_ROLLOUT,
    )  # fmt: skip
    slope = tl.where(counted, slope / tl.load(denominator_ptr), 0.0)
    tl.store(slope_ptr + row, slope, mask=inside)
    out = partial_ptr + tl.program_id(0) * METRIC_COUNT
    gap = tl.abs(logp - rollout) if HAS_ROLLOUT else logp * 0.0
    tl.store(out + LOSS_SUM, sum_rows(loss, counted))
    tl.store(out + TOKENS, count_rows(counted, counted))
    tl.store(out + ENTROPY_SUM, sum_rows(entropy, counted))
    tl.store(out + PPO_KL_SUM, sum_rows(old - logp, counted))
    tl.store(out + KL_SUM, sum_rows(kl, counted))
    tl.store(out + RATIO_SUM, sum_rows(ratio, counted))
    tl.store(out + CLIPPED_LOW, count_rows(low, counted))
    tl.store(out + CLIPPED_HIGH, count_rows(high, counted))
    tl.store(out + DUAL_CLIPPED, count_rows(dual, counted))
    tl.store(out + TIS_WEIGHT_SUM, sum_rows(weight, counted))
    tl.store(out + TIS_TRUNCATED, count_rows(truncated, counted))
    tl.store(out + IMPORTANCE_MASKED, count_rows(outside, counted))
    tl.store(out + LOGPROB_GAP_SUM, sum_rows(gap, counted))
    tl.store(out + LOGPROB_GAP_MAX, tl.max(tl.where(counted, gap, 0.0), 0))


def row_terms(
    logp: Tensor, entropy: Tensor, rows: LossRows, loss: PolicyLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Slopes c = dLoss/dlogp, float64 [T], and the metrics of `policy_loss_from_logprob`.

    Two runs are bitwise equal: blocks write partial sums, which one sum adds in order.
    """
    count = logp.shape[0]
    blocks = max(1, triton.cdiv(count, BLOCK_ROWS))
    scale = torch.full((1,), rows.denominator, dtype=torch.float64, device=logp.device)
    slope = torch.empty(count, dtype=torch.float64, device=logp.device)
    partial = torch.zeros(blocks, len(METRICS), dtype=torch.float64, device=logp.device)
    if count:
        row_kernel[(blocks,)](
            logp, entropy, rows.old_logp, rows.advantages, rows.mask, rows.rollout_logp,
            rows.reference_logp, slope, partial, count, scale, **option_constants(loss, rows),
            METRIC_COUNT=len(METRICS), BLOCK=BLOCK_ROWS, num_warps=4,
        )  # fmt: skip
    sums, largest = partial.sum(dim=0), partial.amax(dim=0)
    return slope, {
        metric.name: sums[i] if metric.reduction == "sum" else largest[i]
        for i, metric in enumerate(TOKEN_METRICS)
    }
