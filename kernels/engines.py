"""The three GEMMs of the output layer on one chunk of rows: by torch, or by Triton.

E = exp(X W^T / tau - kappa) with its row sums; then dX = r (E W) and dW += E^T (r X). On a GPU the
Triton engine has two back ends for the first GEMM: "fused" (one TMA kernel with the exponential in
its epilogue) and "blas" (cuBLAS with float32 output and a row pass); `TUNING` chooses.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from passk_fast.kernels.soft_cap import soft_cap_slope, soft_capped
from passk_fast.kernels.tiles import (
    FIRST,
    FIRST_NO_STORE,
    INPUT_GRAD,
    SMALL,
    WEIGHT_GRAD,
    GemmConfig,
)

MAX_EXPONENT = 80.0
Z_BLOCKS = 16
"""Back end "blas" makes float32 logits of a chunk in this many pieces."""


FirstGemm = Literal["fused", "blas"]
"""Under a soft cap "blas" alone: the cap in the fused kernel's epilogue spills registers."""

TUNING: tuple[tuple[int, int, FirstGemm], ...] = ((1024, 8192, "fused"), (0, 0, "blas"))
"""(least H, least local V, back end of the first GEMM): the first row that fits. Not measured."""


def first_backend(hidden: int, columns: int, dtype: torch.dtype) -> FirstGemm:
    """ "fused" or "blas" for a shape; TMA needs 16-byte rows, tensor cores half precision."""
    half = dtype in (torch.bfloat16, torch.float16)
    if not half or hidden % 8:
        return "blas"
    return next(name for h, v, name in TUNING if hidden >= h and columns >= v)


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 result; half inputs keep their full products."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class GemmEngine(Protocol):
    """The GEMMs of one chunk of n rows x [n, H] against the true columns w [V, H]."""

    def row_bytes(self, width: int, hidden: int, itemsize: int) -> int:
        """Temporary bytes that a row of a chunk takes."""

    def target_logit(self, x: Tensor, w: Tensor, column: Tensor, owned: Tensor) -> Tensor:
        """Logit of each row's target, float32 [n]; 0 where this shard does not own it."""

    def first(
        self, x: Tensor, w: Tensor, inv_tau: Tensor, kappa: Tensor, keep: bool
    ) -> tuple[Tensor | None, Tensor]:
        """(E [n, V or more] if `keep`, [2, n] row sums of E and E d).

        Under a soft cap d is of the capped logits, and the kept E is multiplied by its slope.
        """

    def gradient(
        self, e: Tensor, x: Tensor, r: Tensor, w: Tensor, dw: Tensor | None, need_dx: bool
    ) -> Tensor | None:
        """dX [n, H] (or None), and dw += E^T (r X). Rows with r = 0 are in no GEMM."""


class TorchEngine:
    """Plain torch; the path for CPU training. Waits for nothing on a CPU, so it may count rows."""

    def __init__(self, soft_cap: float = 0.0) -> None:
        self.soft_cap = soft_cap

    def row_bytes(self, width: int, hidden: int, itemsize: int) -> int:
        """Temporary bytes that a row of a chunk takes."""
        size = max(4, itemsize)
        blocks = 4 if self.soft_cap else 2
        return width * (itemsize + blocks * size // Z_BLOCKS) + 3 * hidden * size

    def target_logit(self, x: Tensor, w: Tensor, column: Tensor, owned: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        z = (x.to(wide) * w[column].to(wide)).sum(dim=1)
        return z.masked_fill(~owned, 0.0)

    def first(
        self, x: Tensor, w: Tensor, inv_tau: Tensor, kappa: Tensor, keep: bool
    ) -> tuple[Tensor | None, Tensor]:
        """(E [n, V] or None, [2, n] row sums of E and E d); w holds the V true columns."""
        n = x.shape[0]
        stats = kappa.new_zeros((2, n))
        e = x.new_empty((n, w.shape[0])) if keep else None
        step = -(-n // Z_BLOCKS) if n else 1
        for at in range(0, n, step):
            rows = slice(at, min(at + step, n))
            z = soft_capped(mm_float32(x[rows], w.T), self.soft_cap)
            slope = soft_cap_slope(z, self.soft_cap) if self.soft_cap and keep else None
            d = z.mul_(inv_tau[rows, None]).sub_(kappa[rows, None])
            block = d.clamp(max=MAX_EXPONENT).exp_()
            stats[0, rows] = block.sum(dim=1)
            if e is not None:
                e[rows] = (block if slope is None else slope.mul_(block)).to(e.dtype)
            stats[1, rows] = block.mul_(d).sum(dim=1)
        return e, stats

    def gradient(
        self, e: Tensor, x: Tensor, r: Tensor, w: Tensor, dw: Tensor | None, need_dx: bool
    ) -> Tensor | None:
        """dX [n, H] (or None), and dw += E^T (r X). Rows with r = 0 are in no GEMM."""
        keep = (r != 0).nonzero()[:, 0]
        if len(keep) < len(r):
            e, x, kept = e[keep], x[keep], r[keep]
        else:
            kept = r
        if dw is not None:
            dw += mm_float32(e.T, (kept[:, None] * x).to(x.dtype))
        if not need_dx:
            return None
        part = (mm_float32(e, w) * kept[:, None]).to(x.dtype)
        return x.new_zeros((len(r), w.shape[1])).index_copy_(0, keep, part)


class TritonEngine:
    """Triton kernels, on a GPU or through the interpreter; no host wait."""

    def __init__(self, first: FirstGemm, interpreted: bool, soft_cap: float = 0.0) -> None:
        self.backend = first
        self.interpreted = interpreted
        self.soft_cap = float(soft_cap)

    def row_bytes(self, width: int, hidden: int, itemsize: int) -> int:
        """Temporary bytes that a row of a chunk takes."""
        fused = self.backend == "fused"
        extra = 8 * -(-width // FIRST.block_n) if fused else 4 * width // Z_BLOCKS
        return width * itemsize + extra + 3 * hidden * itemsize

    def _config(self, config: GemmConfig) -> GemmConfig:
        return SMALL if self.interpreted else config

    def _grid(self, device: torch.device) -> tuple[int]:
        """One program per multiprocessor; descriptors made in kernels need their scratch memory."""
        import triton

        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device)
        )
        if self.interpreted:
            return (2,)
        return (torch.cuda.get_device_properties(device).multi_processor_count,)

    def _launch(
        self,
        kernel: Any,
        config: GemmConfig,
        x: Tensor,
        *args: Tensor | int | None,
        **extra: bool,
    ) -> None:
        precision = "ieee" if x.dtype == torch.float32 else "tf32"
        kernel[self._grid(x.device)](
            *args,
            **config.constants(),
            **extra,
            PRECISION=precision,
            num_stages=config.num_stages,
            num_warps=config.num_warps,
        )

    def target_logit(self, x: Tensor, w: Tensor, column: Tensor, owned: Tensor) -> Tensor:
        from passk_fast.kernels.triton.head import target_logit_kernel

        out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        if x.shape[0]:
            target_logit_kernel[(x.shape[0],)](
                x, w, column, owned, out, x.stride(0), w.stride(0), x.shape[1], BLOCK=1024
            )
        return out

    def first(
        self, x: Tensor, w: Tensor, inv_tau: Tensor, kappa: Tensor, keep: bool
    ) -> tuple[Tensor | None, Tensor]:
        """(E [n, V up to whole 16 bytes] or None, [2, n] row sums of E and E d)."""
        n, width = x.shape[0], -(-w.shape[0] // 8) * 8
        e = x.new_empty((n, width)) if keep else None
        if not n:
            return e, kappa.new_zeros((2, 0))
        run = self._first_fused if self.backend == "fused" else self._first_blas
        return e, run(x, w, inv_tau, kappa, width, e)

    def _first_fused(
        self,
        x: Tensor,
        w: Tensor,
        inv_tau: Tensor,
        kappa: Tensor,
        width: int,
        e: Tensor | None,
    ) -> Tensor:
        from passk_fast.kernels.triton.head import first_gemm_kernel

        config = self._config(FIRST if e is not None else FIRST_NO_STORE)
        tiles = -(-width // config.block_n)
        partial = kappa.new_empty((2, tiles, x.shape[0]))
        self._launch(
            first_gemm_kernel, config, x, x, w, e, inv_tau, kappa, partial[0], partial[1],
            x.stride(0), w.stride(0), width, x.shape[0], w.shape[0], width, x.shape[1],
            STORE=e is not None,
        )  # fmt: skip
        return partial.sum(dim=1)

    def _first_blas(
        self,
        x: Tensor,
        w: Tensor,
        inv_tau: Tensor,
        kappa: Tensor,
        width: int,
        e: Tensor | None,
    ) -> Tensor:
        from passk_fast.kernels.triton.head import anchored_rows_kernel

        n = x.shape[0]
        stats = kappa.new_empty((2, n))
        step = -(-n // Z_BLOCKS)
        for at in range(0, n, step):
            rows = slice(at, min(at + step, n))
            z = mm_float32(x[rows], w.T)
            anchored_rows_kernel[(z.shape[0],)](
                z, None if e is None else e[rows], inv_tau[rows], kappa[rows], stats[0, rows],
                stats[1, rows], z.stride(0), width, w.shape[0], width, STORE=e is not None,
                SOFT_CAP=self.soft_cap, BLOCK=512 if self.interpreted else 4096, num_warps=8,
            )  # fmt: skip
        return stats

    def gradient(
        self, e: Tensor, x: Tensor, r: Tensor, w: Tensor, dw: Tensor | None, need_dx: bool
    ) -> Tensor | None:
        """dX [n, H] (or None), and dw += E^T (r X). Rows with r = 0 are moved behind the others,
        and the GEMMs stop at the count of the others, which stays on the device."""
        from passk_fast.kernels.triton.head import (
            fill_holes_kernel,
            input_grad_kernel,
            weight_grad_kernel,
        )

        n, hidden = x.shape
        if not n:
            return x.new_zeros((0, hidden)) if need_dx else None
        place, source, count = hole_moves(r != 0)
        fill_holes_kernel[(n,)](
            e, x, source, e.stride(0), x.stride(0), e.shape[1], hidden,
            BLOCK=512 if self.interpreted else 2048,
        )  # fmt: skip
        moved = torch.zeros_like(r).scatter_(0, place, r)
        if dw is not None:
            rx = (moved[:, None] * x).to(x.dtype)
            self._launch(
                weight_grad_kernel, self._config(WEIGHT_GRAD), x, e, rx, dw, count, e.stride(0),
                rx.stride(0), dw.stride(0), n, w.shape[0], e.shape[1], hidden,
                REDUCE=not self.interpreted,
            )  # fmt: skip
        if not need_dx:
            return None
        dx = x.new_zeros((n, hidden))
        self._launch(
            input_grad_kernel, self._config(INPUT_GRAD), x, e, w, dx, moved, count, e.stride(0),
            w.stride(0), dx.stride(0), n, w.shape[0], e.shape[1], hidden,
        )  # fmt: skip
        return dx[place]


def hole_moves(keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How rows with `keep` [n] come to stand first while most stay where they are; no host wait.

    Returns (place [n] int64: where each row ends; source [n] int32: the row to copy to i, or -1;
    count int32 [1]: rows kept). Row j behind `count` fills the hole of the same rank before it.
    Example: keep = [1, 0, 0, 1, 1] gives count 3, source [-1, 3, 4, -1, -1], place [0, 3, 4, 1, 2].
    """
    n = keep.shape[0]
    at = torch.arange(n, device=keep.device)
    count = keep.sum()
    front = at < count
    hole, mover = front & ~keep, ~front & keep
    rank = torch.where(front, hole.cumsum(0), mover.cumsum(0)) - 1
    slots = torch.full((n + 1,), -1, dtype=torch.int64, device=keep.device)
    movers = slots.scatter(0, torch.where(mover, rank, n), at)
    holes = slots.scatter(0, torch.where(hole, rank, n), at)
    rank = rank.clamp(min=0)
    source = torch.where(hole, movers[rank], -1)
    place = torch.where(hole, movers[rank], torch.where(mover, holes[rank], at))
    return place, source.to(torch.int32), count.to(torch.int32)[None]
