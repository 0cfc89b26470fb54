"""Triton kernels of the output layer: hidden states to statistics, and three GEMMs to gradients.

The number of rows is read on the device, so rows without gradient cost no GEMM and no wait of the
host. GEMM tiles come through TMA; a persistent grid walks them.
"""

# For rows X [n, H], this shard's weight W [V, H], offsets kappa [n] and temperatures tau [n]:
#     first_gemm     d = X W^T / tau - kappa;  E = exp(min(d, 80)) (phantom columns 0);
#                    per column tile the row sums of E and of E d
#     anchored_rows  the same from float32 logits that cuBLAS made; under a soft cap d is of the
#                    capped logits and E is stored times the cap's slope
#     input_grad     dX = r (E W)          rows from `count` on are left alone
#     weight_grad    dW += E^T (r X)       the same; float32
# Descriptors are made in the kernel: with host-made ones Triton 3.6 to 3.9 cannot split a stored
# tile over two consumer warp groups.

from __future__ import annotations

import triton
import triton.language as tl

from passk_fast.kernels.triton.soft_cap import soft_cap_slope, soft_capped

MAX_EXPONENT = tl.constexpr(80.0)
"""Keeps E finite in bfloat16; a row that reaches it is flagged by its sum and done again."""


@triton.jit
def target_logit_kernel(
    x_ptr, w_ptr, column_ptr, owned_ptr, out_ptr, x_stride, w_stride, hidden, BLOCK: tl.constexpr
):  # fmt: skip
    """z_y = h . w_y in float32 for rows whose target this shard owns, 0 for the others."""
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    if tl.load(owned_ptr + row).to(tl.int1):
        column = tl.load(column_ptr + row).to(tl.int64)
        acc = tl.zeros([BLOCK], tl.float32)
        for start in range(0, hidden, BLOCK):
            k = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + row * x_stride + k, mask=k < hidden, other=0.0)
            w = tl.load(w_ptr + column * w_stride + k, mask=k < hidden, other=0.0)
            acc += x.to(tl.float32) * w.to(tl.float32)
        total = tl.sum(acc, 0)
    tl.store(out_ptr + row, total)


@triton.jit
def tile_of(index, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Walk GROUP row tiles by all column tiles, so that both operands are met again in L2."""
    in_group = GROUP * tiles_n
    first_m = (index // in_group) * GROUP
    group = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + (index % in_group) % group, (index % in_group) // group


@triton.jit
def first_gemm_kernel(
    x_ptr, w_ptr, e_ptr, inv_tau_ptr, kappa_ptr, sum_ptr, moment_ptr, x_stride, w_stride, e_stride,
    num_rows, num_columns, width, hidden,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    STORE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_ptr and moment_ptr are float32 [column tiles, n]."""
    x_desc = tl.make_tensor_descriptor(x_ptr, [num_rows, hidden], [x_stride, 1], [BM, BK])
    w_desc = tl.make_tensor_descriptor(w_ptr, [num_columns, hidden], [w_stride, 1], [BN, BK])
    if STORE:
        e_desc = tl.make_tensor_descriptor(e_ptr, [num_rows, width], [e_stride, 1], [BM, BN])
    tiles_m = tl.cdiv(num_rows, BM)
    tiles_n = tl.cdiv(width, BN)
    steps = tl.cdiv(hidden, BK)
    for index in tl.range(
        tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), warp_specialize=WARP_SPECIALIZE
    ):
        pid_m, pid_n = tile_of(index, tiles_m, tiles_n, GROUP)
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(steps):
            x = x_desc.load([pid_m * BM, k * BK])
            w = w_desc.load([pid_n * BN, k * BK])
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
        row = pid_m * BM + tl.arange(0, BM)
        column = pid_n * BN + tl.arange(0, BN)
        inv_tau = tl.load(inv_tau_ptr + row, mask=row < num_rows, other=0.0)
        kappa = tl.load(kappa_ptr + row, mask=row < num_rows, other=0.0)
        d = acc * inv_tau[:, None] - kappa[:, None]
        e = tl.exp(tl.where(d > MAX_EXPONENT, MAX_EXPONENT, d))
        e = tl.where((column < num_columns)[None, :], e, 0.0)
        at = pid_n.to(tl.int64) * num_rows + row
        tl.store(sum_ptr + at, tl.sum(e, 1), mask=row < num_rows)
        tl.store(moment_ptr + at, tl.sum(e * d, 1), mask=row < num_rows)
        if STORE:
            e_desc.store([pid_m * BM, pid_n * BN], e.to(e_ptr.dtype.element_ty))


@triton.jit
def anchored_rows_kernel(
    z_ptr, e_ptr, inv_tau_ptr, kappa_ptr, sum_ptr, moment_ptr, z_stride, e_stride, num_columns,
    width, STORE: tl.constexpr, SOFT_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row of float32 logits z; columns from num_columns to width of E get zero."""
    row = tl.program_id(0).to(tl.int64)
    inv_tau = tl.load(inv_tau_ptr + row)
    kappa = tl.load(kappa_ptr + row)
    s = tl.zeros([BLOCK], tl.float32)
    u = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < num_columns
        z = tl.load(z_ptr + row * z_stride + column, mask=inside, other=0.0)
        z = soft_capped(z, SOFT_CAP)
        d = z * inv_tau - kappa
        e = tl.exp(tl.where(d > MAX_EXPONENT, MAX_EXPONENT, d))
        e = tl.where(inside, e, 0.0)
        s += e
        u += tl.where(inside, e * d, 0.0)
        if STORE:
            if SOFT_CAP > 0:
                e = e * soft_cap_slope(z, SOFT_CAP)
            at = e_ptr + row * e_stride + column
            tl.store(at, e.to(e_ptr.dtype.element_ty), mask=column < width)
    tl.store(sum_ptr + row, tl.sum(s, 0))
    tl.store(moment_ptr + row, tl.sum(u, 0))


@triton.jit
def fill_holes_kernel(e_ptr, x_ptr, source_ptr, e_stride, x_stride, width, hidden,
                      BLOCK: tl.constexpr):  # fmt: skip
    """Row i := row source[i] of E and of X where source[i] >= 0; sources are never holes."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(source_ptr + row).to(tl.int64)
    if source >= 0:
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            value = tl.load(e_ptr + source * e_stride + column, mask=column < width)
            tl.store(e_ptr + row * e_stride + column, value, mask=column < width)
        for start in range(0, hidden, BLOCK):
            column = start + tl.arange(0, BLOCK)
            value = tl.load(x_ptr + source * x_stride + column, mask=column < hidden)
            tl.store(x_ptr + row * x_stride + column, value, mask=column < hidden)


@triton.jit
def input_grad_kernel(
    e_ptr, w_ptr, out_ptr, r_ptr, count_ptr, e_stride, w_stride, out_stride, num_rows, num_columns,
    width, hidden,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = r (E W) for the first `count` rows (whole row tiles)."""
    e_desc = tl.make_tensor_descriptor(e_ptr, [num_rows, width], [e_stride, 1], [BM, BK])
    w_desc = tl.make_tensor_descriptor(w_ptr, [num_columns, hidden], [w_stride, 1], [BK, BN])
    out_desc = tl.make_tensor_descriptor(out_ptr, [num_rows, hidden], [out_stride, 1], [BM, BN])
    tiles_m = tl.cdiv(tl.load(count_ptr), BM)
    tiles_n = tl.cdiv(hidden, BN)
    steps = tl.cdiv(width, BK)
    for index in tl.range(
        tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), warp_specialize=WARP_SPECIALIZE
    ):
        pid_m, pid_n = tile_of(index, tiles_m, tiles_n, GROUP)
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(steps):
            e = e_desc.load([pid_m * BM, k * BK])
            w = w_desc.load([k * BK, pid_n * BN])
            acc = tl.dot(e, w, acc, input_precision=PRECISION)
        row = pid_m * BM + tl.arange(0, BM)
        r = tl.load(r_ptr + row, mask=row < num_rows, other=0.0)
        # A row without gradient is exactly zero, whatever E holds.
        grad = tl.where((r != 0.0)[:, None], acc * r[:, None], 0.0)
        out_desc.store([pid_m * BM, pid_n * BN], grad.to(out_ptr.dtype.element_ty))


@triton.jit
def weight_grad_kernel(
    e_ptr, rx_ptr, dw_ptr, count_ptr, e_stride, rx_stride, dw_stride, num_rows, num_columns, width,
    hidden,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    REDUCE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dw [V, H] += E^T (r X) over the first `count` rows; rows of rX from there on are zero.

    Each tile of dw is added to once a launch (a TMA reduction), so two runs are bitwise equal.
    Triton's interpreter has no TMA reduction: there (REDUCE false) the tile is read and stored.
    """
    HALF: tl.constexpr = BN // 2
    e_desc = tl.make_tensor_descriptor(e_ptr, [num_rows, width], [e_stride, 1], [BK, BM])
    rx_desc = tl.make_tensor_descriptor(rx_ptr, [num_rows, hidden], [rx_stride, 1], [BK, BN])
    dw_desc = tl.make_tensor_descriptor(dw_ptr, [num_columns, hidden], [dw_stride, 1], [BM, HALF])
    steps = tl.cdiv(tl.load(count_ptr), BK)
    tiles_m = tl.cdiv(num_columns, BM)
    tiles_n = tl.cdiv(hidden, BN)
    num_tiles = tl.where(steps > 0, tiles_m * tiles_n, 0)
    for index in tl.range(
        tl.program_id(0), num_tiles, tl.num_programs(0), warp_specialize=WARP_SPECIALIZE
    ):
        pid_m, pid_n = tile_of(index, tiles_m, tiles_n, GROUP)
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(steps):
            e = e_desc.load([k * BK, pid_m * BM])
            rx = rx_desc.load([k * BK, pid_n * BN])
            acc = tl.dot(e.T, rx, acc, input_precision=PRECISION)
        left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, HALF)), (0, 2, 1)))
        if REDUCE:
            dw_desc.atomic_add([pid_m * BM, pid_n * BN], left)
            dw_desc.atomic_add([pid_m * BM, pid_n * BN + HALF], right)
        else:
            left += dw_desc.load([pid_m * BM, pid_n * BN])
            right += dw_desc.load([pid_m * BM, pid_n * BN + HALF])
            dw_desc.store([pid_m * BM, pid_n * BN], left)
            dw_desc.store([pid_m * BM, pid_n * BN + HALF], right)
