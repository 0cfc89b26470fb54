"""Policy loss and its gradient from logits that already exist, [T, V_local]: the Triton half of K2.

Logits are read once from memory; the gradient's second read of a row hits L2; the gradient is
written once (in place if asked). A row outside the mask or with c = h = 0 only writes zeros.
"""

# Row t, scaled d = z / tau over the true columns, online maximum M (no anchor, so no fall-back):
#     S = sum exp(d - M),  U = sum exp(d - M) (d - M)
#     logp = d_y - M - ln S,   H = ln S - U / S                                    (nats)
#     dz_j = (c ([j = y] - p_j) + h p_j (ln p_j + H)) / tau,   p_j = exp(d_j - M) / S
# with c = dLoss/dlogp (triton/rows.py) and h = entropy_coef / denominator, from
# dH/dz_j = -p_j (ln p_j + H) / tau. Under a soft cap z is the capped logit, and dz_j is multiplied
# by the cap's slope 1 - (z_j / cap)^2. Each lane keeps its own maximum and spends one exponential
# per element: exp(-|d - m|) scales either the element or the lane's sums.
# Tensor parallel: `stats_kernel`, one all-gather of [T, 4], `gradient_kernel`.

from __future__ import annotations

import triton
import triton.language as tl

from passk_fast.kernels.triton.rows import load_masked, token_terms
from passk_fast.kernels.triton.soft_cap import soft_cap_slope, soft_capped

FLOOR = tl.constexpr(-1e30)
"""-inf logits become this, so that no difference of two of them is NaN."""
LOWEST = tl.constexpr(-3e38)


@triton.jit
def row_statistics(row_ptr, num_columns, inv_tau, SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr):
    """(M, S, U) of one row's first `num_columns` logits, float32."""
    lane = tl.arange(0, BLOCK)
    m = tl.full([BLOCK], LOWEST, tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    u = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        column = start + lane
        inside = column < num_columns
        z = tl.load(row_ptr + column, mask=inside, other=0.0, eviction_policy="evict_last")
        # NaN must survive the floor: `where` with a comparison keeps it.
        d = soft_capped(z.to(tl.float32), SOFT_CAP) * inv_tau
        d = tl.where(d < FLOOR, FLOOR, d)
        delta = tl.where(inside, d - m, 0.0)
        up = delta > 0
        g = tl.exp(-tl.abs(delta))
        u = tl.where(up, g * (u - s * delta), tl.where(inside, u + g * delta, u))
        s = tl.where(up, s * g + 1.0, tl.where(inside, s + g, s))
        m = tl.where(up, d, m)
    row_max = tl.max(m, 0)
    shift = m - row_max
    scale = tl.exp(shift)
    total = tl.sum(s * scale, 0)
    moment = tl.sum(tl.where(s == 0.0, 0.0, scale * (u + s * shift)), 0)
    return row_max, total, moment


@triton.jit
def row_gradient(
    row_ptr, out_ptr, num_columns, width, target, slope, bonus, row_max, log_sum, entropy, inv_tau,
    SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr, HAS_BONUS: tl.constexpr,
):  # fmt: skip
    """Write one row's gradient, float32 arithmetic; columns from num_columns to width get zero."""
    lane = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        column = start + lane
        inside = column < num_columns
        z = tl.load(row_ptr + column, mask=inside, other=0.0, eviction_policy="evict_first")
        z = soft_capped(z.to(tl.float32), SOFT_CAP)
        d = z * inv_tau
        log_p = (tl.where(d < FLOOR, FLOOR, d) - row_max) - log_sum
        p = tl.exp(log_p)
        grad = -slope * p
        if HAS_BONUS:
            grad += bonus * p * (log_p + entropy)
        grad = tl.where(column == target, grad + slope, grad) * inv_tau
        if SOFT_CAP > 0:
            grad = grad * soft_cap_slope(z, SOFT_CAP)
        grad = tl.where(inside, grad, 0.0)
        tl.store(out_ptr + column, grad.to(out_ptr.dtype.element_ty), mask=column < width)


@triton.jit
def zero_row(out_ptr, width, BLOCK: tl.constexpr):
    """Exactly zero gradient of one row."""
    zero = tl.zeros([BLOCK], tl.float32).to(out_ptr.dtype.element_ty)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + column, zero, mask=column < width)


@triton.jit
def fused_kernel(
    logits_ptr, out_ptr, target_ptr, old_ptr, advantage_ptr, mask_ptr, rollout_ptr, reference_ptr,
    tau_ptr, logp_ptr, entropy_ptr, denominator_ptr, stride, out_stride, num_rows, num_columns,
    width, tau,
    PER_ROW_TAU: tl.constexpr, GRADIENT: tl.constexpr,
    OBJECTIVE: tl.constexpr, KL: tl.constexpr, CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr,
    DUAL: tl.constexpr, CAP: tl.constexpr, MIN_WEIGHT: tl.constexpr, MAX_WEIGHT: tl.constexpr,
    KL_COEF: tl.constexpr, ENTROPY_COEF: tl.constexpr, HAS_OLD: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr, SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One rank holds all columns: statistics, row mathematics and gradient of a row together."""
    first_row = tl.program_id(0).to(tl.int64)
    for index in range(0, tl.cdiv(num_rows - tl.program_id(0), tl.num_programs(0))):
        row = first_row + index * tl.num_programs(0)
        counted = tl.load(mask_ptr + row).to(tl.int1)
        logp = tl.load(denominator_ptr) * 0.0
        entropy = logp
        slope = logp
        bonus = logp
        row_max = 0.0
        log_sum = logp
        target = tl.load(target_ptr + row)
        inv_tau = 1.0 / tau
        if PER_ROW_TAU:
            inv_tau = 1.0 / tl.load(tau_ptr + row).to(tl.float32)
        row_ptr = logits_ptr + row * stride
        if counted:
            row_max, total, moment = row_statistics(row_ptr, num_columns, inv_tau, SOFT_CAP, BLOCK)
            known = (target >= 0) & (target < num_columns)
            z_y = tl.load(row_ptr + target, mask=known, other=float("nan")).to(tl.float32)
            d_y = soft_capped(z_y, SOFT_CAP) * inv_tau
            d_y = tl.where(d_y < FLOOR, FLOOR, d_y)
            log_sum = tl.log(total.to(tl.float64))
            logp = d_y.to(tl.float64) - row_max.to(tl.float64) - log_sum
            entropy = log_sum - moment.to(tl.float64) / total.to(tl.float64)
            old = logp
            if HAS_OLD:
                old = tl.load(old_ptr + row).to(tl.float64)
            rollout = load_masked(rollout_ptr, row, counted, HAS_ROLLOUT)
            reference = load_masked(reference_ptr, row, counted, KL > 0)
            advantage = tl.load(advantage_ptr + row).to(tl.float64)
            _, slope, _, _, _, _, _, _, _, _ = token_terms(
                logp, entropy, old, advantage, rollout, reference, OBJECTIVE, KL, CLIP_LOW,
                CLIP_HIGH, DUAL, CAP, MIN_WEIGHT, MAX_WEIGHT, KL_COEF, ENTROPY_COEF, HAS_ROLLOUT,
            )  # fmt: skip
            slope = slope / tl.load(denominator_ptr)
            bonus = ENTROPY_COEF / tl.load(denominator_ptr)
        tl.store(logp_ptr + row, logp)
        tl.store(entropy_ptr + row, entropy)
        if GRADIENT:
            row_out = out_ptr + row * out_stride
            if counted & ((slope != 0.0) | (bonus != 0.0)):
                row_gradient(
                    row_ptr, row_out, num_columns, width, target, slope.to(tl.float32),
                    bonus.to(tl.float32), row_max, log_sum.to(tl.float32), entropy.to(tl.float32),
                    inv_tau, SOFT_CAP, BLOCK, ENTROPY_COEF > 0,
                )  # fmt: skip
            else:
                zero_row(row_out, width, BLOCK)


@triton.jit
def stats_kernel(
    logits_ptr, target_ptr, mask_ptr, tau_ptr, stats_ptr, stride, num_rows, num_columns, first,
    vocab, tau, PER_ROW_TAU: tl.constexpr, SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """This shard's (M, S, U, d_y or 0), float32 [T, 4]; rows outside the mask are (0, 1, 0, 0)."""
    first_row = tl.program_id(0).to(tl.int64)
    for index in range(0, tl.cdiv(num_rows - tl.program_id(0), tl.num_programs(0))):
        row = first_row + index * tl.num_programs(0)
        inv_tau = 1.0 / tau
        if PER_ROW_TAU:
            inv_tau = 1.0 / tl.load(tau_ptr + row).to(tl.float32)
        row_ptr = logits_ptr + row * stride
        row_max = 0.0
        total = 1.0
        moment = 0.0
        d_y = 0.0
        if tl.load(mask_ptr + row).to(tl.int1):
            row_max, total, moment = row_statistics(row_ptr, num_columns, inv_tau, SOFT_CAP, BLOCK)
            target = tl.load(target_ptr + row)
            local = target - first
            owned = (local >= 0) & (local < num_columns)
            z_y = tl.load(row_ptr + local, mask=owned, other=0.0).to(tl.float32)
            d_y = soft_capped(z_y, SOFT_CAP) * inv_tau
            d_y = tl.where(d_y < FLOOR, FLOOR, d_y)
            d_y = tl.where((target >= 0) & (target < vocab), d_y, float("nan"))
        tl.store(stats_ptr + 4 * row, row_max)
        tl.store(stats_ptr + 4 * row + 1, total)
        tl.store(stats_ptr + 4 * row + 2, moment)
        tl.store(stats_ptr + 4 * row + 3, d_y)


@triton.jit
def gradient_kernel(
    logits_ptr, out_ptr, target_ptr, tau_ptr, row_max_ptr, log_sum_ptr, entropy_ptr, slope_ptr,
    bonus_ptr, stride, out_stride, num_rows, num_columns, width, first, tau,
    PER_ROW_TAU: tl.constexpr, HAS_BONUS: tl.constexpr, SOFT_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of this shard's logits from slopes c and bonuses h, float64 [T] each."""
    first_row = tl.program_id(0).to(tl.int64)
    for index in range(0, tl.cdiv(num_rows - tl.program_id(0), tl.num_programs(0))):
        row = first_row + index * tl.num_programs(0)
        slope = tl.load(slope_ptr + row).to(tl.float32)
        bonus = slope * 0.0
        if HAS_BONUS:
            bonus = tl.load(bonus_ptr + row).to(tl.float32)
        inv_tau = 1.0 / tau
        if PER_ROW_TAU:
            inv_tau = 1.0 / tl.load(tau_ptr + row).to(tl.float32)
        row_out = out_ptr + row * out_stride
        if (slope != 0.0) | (bonus != 0.0):
            row_gradient(
                logits_ptr + row * stride, row_out, num_columns, width,
                tl.load(target_ptr + row) - first, slope, bonus,
                tl.load(row_max_ptr + row).to(tl.float32),
                tl.load(log_sum_ptr + row).to(tl.float32),
                tl.load(entropy_ptr + row).to(tl.float32), inv_tau, SOFT_CAP,
                BLOCK, HAS_BONUS,
            )  # fmt: skip
        else:
            zero_row(row_out, width, BLOCK)


@triton.jit
def rescale_kernel(values_ptr, scale_ptr, num_elements, BLOCK: tl.constexpr):
    """values *= scale in place, without touching memory where the scale is exactly 1."""
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values_ptr + offset, mask=offset < num_elements)
        value = (value.to(tl.float32) * scale).to(values_ptr.dtype.element_ty)
        tl.store(values_ptr + offset, value, mask=offset < num_elements)
