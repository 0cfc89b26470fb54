"""K1 `linear_policy_loss` and K3 `token_logprob`: the output layer and the loss in three GEMMs.

Gradients are made in the forward pass, since the loss is ours and separable by token, so no logits
are computed twice. Derivation: docs/kernels.md.
"""

# Hidden states X [T, H], this rank's columns W [V, H] of the output layer, tau the temperature.
# With z = h . w and an anchor a per row (old_logp), kappa = z_y / tau - a and
# E_j = exp(z_j / tau - kappa):
#     S = sum_j E_j = exp(a - logp),  u = sum_j E_j ln E_j
#     logp = a - ln S,   H = ln S - u / S                                          (nats)
#     c = dLoss/dlogp (token_loss.py), r = -c / (tau S), and with S taken off E at the target column
#     dX = r (E W),   dW = E^T (r X)
# Under a soft cap z is the capped logit, and E is stored times the cap's slope 1 - (z / cap)^2.
# No running maximum and no MAX all-reduce: tensor parallelism needs one SUM of [S, u]. It holds
# while |a - logp| < 80; other rows, and every row with an entropy bonus, go through float32 logits
# and an online maximum.

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from passk_fast.kernels.attach import attach
from passk_fast.kernels.backend import Backend, pick_backend, row_slopes
from passk_fast.kernels.checks import check_main_grad, check_row_index, check_rows
from passk_fast.kernels.engines import (
    FirstGemm,
    GemmEngine,
    TorchEngine,
    TritonEngine,
    first_backend,
)
from passk_fast.kernels.head_run import HeadRun, Slopes, anchored_pass, logits_pass
from passk_fast.kernels.inputs import LossReport, LossRows, OutputHead
from passk_fast.kernels.options import DEFAULT_LOSS, PolicyLoss
from passk_fast.kernels.row_plan import Chunk
from passk_fast.kernels.shapes import Float, Int
from passk_fast.kernels.shard import Shard, as_temperature


def linear_policy_loss(
    head: OutputHead,
    rows: LossRows,
    loss: PolicyLoss = DEFAULT_LOSS,
    *,
    main_grad: Float[Tensor, "V H"] | None = None,
    filter_eps: float = 0.0,
    keep_rows: bool = False,
) -> tuple[Float[Tensor, ""], LossReport]:
    """Policy loss of packed tokens from hidden states, without logits of T x V.

    Args:
        head: hidden states and the output layer.
        rows: the rows of the loss, T of them.
        loss: options.
        main_grad: float32 [V, H] to which backward adds the weight's gradient instead of returning
            it.
        filter_eps: skip the gradient of rows with |c| (1 - p_y) / tau < filter_eps, where that
            product bounds every entry of the row's dLoss/dlogits; 0 is off.
        keep_rows: report log-probs, entropies and which rows counted.

    Returns:
        (loss, report): a float32 loss (float64 with float64 inputs). Gradients of hidden and weight
        are ready when it returns; backward scales them, once.

    Raises:
        TypeError, ValueError: a field is of the wrong type, shape, device or range; names it.
    """
    if not filter_eps >= 0:
        raise ValueError(f"filter_eps must be 0 or more, got {filter_eps}.")
    hidden, weight = head.hidden, head.weight
    need = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight)]
    with torch.no_grad():
        anchor = rows.rollout_logp if rows.old_logp is None else rows.old_logp
        run = _start(head, rows.targets, anchor, need)
        check_main_grad(main_grad, weight)
        rows.check(loss, run.shard.vocab, hidden.device)
        step = _Step(run, rows, loss, filter_eps)
        report = step.run(any(need))
        value = report.metrics["loss_sum"] / rows.denominator
        value = value.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        if keep_rows:
            logp, entropy = run.logp[:-1], run.entropy[:-1]
            report = replace(report, logp=logp, entropy=entropy, counted=step.counted)
    if not any(need):
        return value, report
    grads = [None if run.grad_hidden is None else run.grad_hidden[:-1], run.grad_weight]
    return attach(value, (hidden, weight), grads, main_grad if need[1] else None), report


class _Step:
    """The loss of one call: which rows, their slopes, and the metrics."""

    def __init__(self, head: HeadRun, rows: LossRows, loss: PolicyLoss, filter_eps: float) -> None:
        self.head, self.loss, self.filter_eps = head, loss, filter_eps
        whole = loss.every_masked_row or loss.ratio == "sequence"
        mask = rows.mask
        # Rows outside count for nothing; NaN advantages stay in, so that they are seen.
        self.counted = mask if whole else mask & (rows.advantages != 0)
        given = rows.row_index
        self.index = self._index(given)
        if given is not None:
            listed = torch.zeros(len(mask) + 1, dtype=torch.bool, device=mask.device)
            listed[given.to(mask.device, non_blocking=True)] = True
            self.counted = self.counted & listed[:-1]
        head.counted = self.counted
        self.rows = replace(rows, mask=self.counted)
        self.filtered = torch.zeros((), dtype=torch.float64, device=mask.device)

    def _index(self, given: Tensor | None) -> Tensor:
        """CPU int64 [L], the rows to compute."""
        if given is not None:
            return given
        if self.counted.device.type == "cpu":
            return self.counted.nonzero()[:, 0]
        return torch.arange(self.head.num_rows)

    def run(self, gradient: bool) -> LossReport:
        """All passes over the rows."""
        slopes: Slopes | None = self._chunk_slopes if gradient else None
        if self.loss.ratio == "sequence" and gradient:
            # A sequence's ratio needs all its tokens first: log-probs, then the pass with slopes.
            self._passes(None)
            slopes = self._known_slopes(self._row_slopes()[0])
        fallback = self._passes(slopes)
        _, metrics = self._row_slopes()
        more = {"softmax_fallback_rows": fallback, "filtered_rows": self.filtered}
        return LossReport(metrics=metrics | more, backend=self.head.backend)

    def _passes(self, slopes: Slopes | None) -> Tensor:
        """The anchored pass and, for rows out of its reach, the one through logits; how many."""
        head = self.head
        if self.loss.entropy_coef:
            logits_pass(head, self.index, slopes)
            return self.counted.sum().double()
        anchored_pass(head, self.index, slopes)
        fallback = head.fallback_rows()
        if fallback is not None:
            logits_pass(head, fallback, slopes)
        return head.fallback[:-1].sum().double()

    def _row_slopes(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Slopes of all rows, from what the passes have found, and their metrics."""
        head = self.head
        return row_slopes(head.logp[:-1], head.entropy[:-1], self.rows, self.loss, head.backend)

    def _chunk_slopes(
        self, chunk: Chunk, logp: Tensor, entropy: Tensor, good: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        counted = good & self.counted[chunk.rows]
        rows = self.rows.at(chunk.rows, counted)
        slope, _ = row_slopes(logp, entropy, rows, self.loss, self.head.backend)
        return self._filter(chunk, slope, logp, counted), self._bonus(counted)

    def _known_slopes(self, whole: Tensor) -> Slopes:
        def known(
            chunk: Chunk, logp: Tensor, entropy: Tensor, good: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            counted = good & self.counted[chunk.rows]
            slope = whole[chunk.rows].masked_fill(~counted, 0.0)
            return self._filter(chunk, slope, logp, counted), self._bonus(counted)

        return known

    def _bonus(self, counted: Tensor) -> Tensor | None:
        """h = entropy_coef / denominator on counted rows, float64, or None when off."""
        if not self.loss.entropy_coef:
            return None
        return counted.double() * (self.loss.entropy_coef / self.rows.denominator)

    def _filter(self, chunk: Chunk, slope: Tensor, logp: Tensor, counted: Tensor) -> Tensor:
        """Drop slopes of rows whose largest |dLoss/dlogit| is below filter_eps."""
        if not self.filter_eps:
            return slope
        bound = slope.abs() * -torch.expm1(logp) * self.head.inv_tau[chunk.rows]
        small = (bound < self.filter_eps) & counted & (slope != 0)
        self.filtered += small.sum()
        return slope.masked_fill(small, 0.0)


def token_logprob(
    head: OutputHead,
    targets: Int[Tensor, " T"],
    *,
    row_index: Int[Tensor, " L"] | None = None,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Log-prob of each target and entropy of each row, nats, one GEMM, without gradient.

    Args:
        head: hidden states and the output layer.
        targets: as `LossRows.targets`.
        row_index: the rows to compute, as `LossRows.row_index`; the others are NaN. None: all.

    A log-prob below -80 is computed again through float32 logits.

    Returns:
        (logp [T], entropy [T]), float32, or float64 where the inputs are; equal on every rank.

    Raises:
        TypeError, ValueError: a field is of the wrong type, shape, device or range; names it.
    """
    with torch.no_grad():
        run = _start(head, targets, None, [False, False])
        check_rows(targets, run.shard.vocab, device=head.hidden.device)
        check_row_index(row_index, run.num_rows)
        anchored_pass(run, torch.arange(run.num_rows) if row_index is None else row_index, None)
        fallback = run.fallback_rows()
        if fallback is not None:
            logits_pass(run, fallback, None)
    dtype = torch.float64 if head.hidden.dtype == torch.float64 else torch.float32
    return run.logp[:-1].to(dtype), run.entropy[:-1].to(dtype)


def _start(head: OutputHead, targets: Tensor, anchor: Tensor | None, need: list[bool]) -> HeadRun:
    """Check the inputs, choose the back end and the chunk, and allocate the results."""
    shard = head.check()
    hidden, weight = head.hidden, head.weight
    if hidden.dtype == torch.float16:
        raise TypeError("hidden must be bfloat16, float32 or float64: E needs their range.")
    parts = shard.size if head.sequence_parallel else 1
    rows = hidden.shape[0] * parts
    if tuple(targets.shape) != (rows,):
        raise ValueError(
            f"targets must be [T] = [{rows}], hidden's rows over {parts} part(s), got "
            f"{tuple(targets.shape)}."
        )
    device = hidden.device
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    tau = as_temperature(head.temperature, rows, device)
    inv_tau = (
        tau.to(wide).reciprocal()
        if isinstance(tau, Tensor)
        else torch.full((rows,), 1.0 / tau, dtype=wide, device=device)
    )
    start = torch.zeros(rows, dtype=wide, device=device) if anchor is None else anchor.to(wide)
    start = torch.where(torch.isfinite(start), start, 0.0)
    engine, backend = _engine(head)
    nan = torch.full((rows + 1,), torch.nan, dtype=torch.float64, device=device)
    return HeadRun(
        hidden=hidden.detach(),
        weight=weight.detach(),
        targets=targets,
        anchor=start,
        inv_tau=inv_tau,
        shard=shard,
        parts=parts,
        engine=engine,
        backend=backend,
        chunk_rows=chunk_rows(engine, weight, shard, head.memory_gib),
        soft_cap=head.soft_cap,
        logp=nan,
        entropy=nan.clone(),
        fallback=torch.zeros(rows + 1, dtype=torch.bool, device=device),
        counted=torch.ones(rows, dtype=torch.bool, device=device),
        grad_hidden=hidden.new_zeros((hidden.shape[0] + 1, hidden.shape[1])) if need[0] else None,
        grad_weight=torch.zeros(weight.shape, dtype=wide, device=device) if need[1] else None,
    )


def _engine(head: OutputHead) -> tuple[GemmEngine, Backend]:
    """The GEMM engine and the name of the back end that is reported."""
    hidden, weight, cap = head.hidden, head.weight, head.soft_cap
    backend = pick_backend(hidden)
    if backend == "triton" and hidden.dtype != torch.bfloat16:
        backend = "torch"  # tensor cores would round float32 to TF32
    if backend == "torch":
        return TorchEngine(cap), backend
    if backend == "interpreter":
        if hidden.dtype != torch.float32 or hidden.shape[1] % 4:
            return TorchEngine(cap), "torch"  # the interpreter's bfloat16 products are wrong
        return TritonEngine(_first_gemm(head, "fused"), True, cap), backend
    if hidden.shape[1] % 8 or weight.stride(0) % 8:
        return TorchEngine(cap), "torch"  # TMA needs rows of whole 16 bytes
    best = first_backend(hidden.shape[1], weight.shape[0], hidden.dtype)
    return TritonEngine(_first_gemm(head, best), False, cap), backend


def _first_gemm(head: OutputHead, best: FirstGemm) -> FirstGemm:
    """The first GEMM's back end: as asked, else `best` but under a soft cap."""
    if head.first_gemm != "auto":
        return head.first_gemm
    return "blas" if head.soft_cap else best


def chunk_rows(engine: GemmEngine, weight: Tensor, shard: Shard, memory_gib: float) -> int:
    """Rows per chunk, so that temporaries stay within `memory_gib` (two chunks are open under TP).

    ValueError when not even one row fits.
    """
    width = -(-weight.shape[0] // 8) * 8
    row = engine.row_bytes(width, weight.shape[1], weight.element_size())
    rows = int(memory_gib * 2**30 // (row * (2 if shard.size > 1 else 1)))
    if rows < 1:
        raise ValueError(f"memory_gib = {memory_gib} holds no row of {row} bytes; raise it.")
    return rows if rows < 128 else rows // 128 * 128
