"""K1 `linear_policy_loss` and K3 `token_logprob`: the output layer and the loss in three GEMMs.

Hidden states X [T, H], this rank's columns W [V, H] of the output layer, tau the temperature. With
z = h . w and an anchor a per row (old_logp), kappa = z_y / tau - a, E_j = exp(z_j / tau - kappa):
    S = sum_j E_j = exp(a - logp),  u = sum_j E_j ln E_j
    logp = a - ln S,   H = ln S - u / S                                          (nats)
    c = dLoss/dlogp (token_loss.py), r = -c / (tau S), and with S taken off E at the target column
    dX = r (E W),   dW = E^T (r X)
No running maximum and no MAX all-reduce: tensor parallelism needs one SUM of [S, u]. Gradients are
made in the forward pass, since the loss is ours and separable by token, so no logits are computed
twice. It holds while |a - logp| < 80; other rows, and every row with an entropy bonus, go through
float32 logits and an online maximum. Derivation: docs/kernels.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.attach import attach
from passk_fast.kernels.backend import pick_backend, row_slopes
from passk_fast.kernels.checks import check_head, check_main_grad, check_rows
from passk_fast.kernels.engines import TorchEngine, TritonEngine, first_backend
from passk_fast.kernels.head_run import Head, Slopes, anchored_pass, logits_pass
from passk_fast.kernels.loss_rows import LossRows
from passk_fast.kernels.options import PolicyLoss, merge_clip
from passk_fast.kernels.row_plan import Chunk
from passk_fast.kernels.shard import Shard, as_temperature, shard_of

DEFAULT_MEMORY_GIB = 2.6
"""Temporary memory of a pass: a bfloat16 chunk of 8,192 rows at V = 151,936, H = 5120, TP = 1."""


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    clip_low: float | None = None,
    clip_high: float | None = None,
    temperature: float | Tensor = 1.0,
    loss: PolicyLoss | None = None,
    rollout_logp: Tensor | None = None,
    reference_logp: Tensor | None = None,
    sequence_index: Tensor | None = None,
    group: Any = None,
    vocab: int | None = None,
    sequence_parallel: bool = False,
    live: Tensor | None = None,
    memory_gib: float = DEFAULT_MEMORY_GIB,
    filter_eps: float = 0.0,
    main_grad: Tensor | None = None,
    keep_rows: bool = False,
    first_gemm: str = "auto",
) -> tuple[Tensor, dict[str, Any]]:
    """Policy loss of packed tokens from hidden states, without logits of T x V.

    Args:
        hidden: [T, H] bfloat16, float32 or float64; this rank's [T / tp, H] with
            `sequence_parallel`.
        weight: [V, H], this rank's columns of the output layer: rank r of `group` holds columns
            r V to (r + 1) V - 1 of the padded vocabulary.
        targets: int [T], in 0..vocab-1 (a target outside gives NaN on a GPU, an error on a CPU).
        old_logp: [T], the trainer's log-probs before the update; None: strictly on-policy, ratio 1.
        advantages, mask: [T] floating-point, [T] bool.
        denominator: the step's global denominator.
        clip_low, clip_high: override those of `loss`; without `loss` they are 0.2 and 0.28.
        temperature: logits are divided by it; a number or [T].
        rollout_logp, reference_logp, sequence_index: [T], for the options of `loss` that need them.
        group: tensor-parallel process group. vocab: true vocabulary size; columns from it on are
            padding. Every other [T] input is the same on all ranks.
        live: int64 [L] on the CPU: the rows to compute (`live_rows`, made when the batch was
            packed). None: found here on a CPU; on a GPU all rows are then computed, since counting
            would wait for the device.
        memory_gib: bound of temporary memory; the chunk size follows from it.
        filter_eps: skip the gradient of rows with |c| (1 - p_y) / tau < filter_eps, where that
            product bounds every entry of the row's dLoss/dlogits; 0 is off.
        main_grad: float32 [V, H] to which backward adds dW instead of returning it.
        keep_rows: add metrics "logp" and "entropy", float64 [T], NaN in rows not computed, and
            "counted", bool [T], the rows that the metrics are over.
        first_gemm: "auto", "fused" or "blas": the first GEMM's back end under Triton.

    Returns:
        (loss, metrics). Gradients of hidden and weight are ready when it returns; backward scales
        them, once. Metrics are float64 sums over the rows computed (see `MAX_METRICS`), with
        "backend": "triton", "interpreter" or "torch", "softmax_fallback_rows" (done through float32 logits
        with an online maximum) and "filtered_rows".

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, device or range; names it.
    """
    need = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight)]
    with torch.no_grad():
        head = _head(
            hidden, weight, targets, old_logp if old_logp is not None else rollout_logp,
            temperature, group, vocab, sequence_parallel, memory_gib, first_gemm, need,
        )  # fmt: skip
        check_main_grad(main_grad, weight)
        rows = LossRows(
            old_logp=old_logp,
            advantages=advantages,
            mask=mask,
            denominator=denominator,
            loss=merge_clip(loss, clip_low, clip_high),
            rollout_logp=rollout_logp,
            reference_logp=reference_logp,
            sequence_index=sequence_index,
        )
        rows.check(targets, head.shard.vocab, hidden.device)
        step = _Step(head, rows, filter_eps, live)
        metrics = step.run(any(need))
        value = (metrics["loss_sum"] / denominator).to(
            torch.float64 if hidden.dtype == torch.float64 else torch.float32
        )
        if keep_rows:
            metrics["logp"] = head.logp[:-1]
            metrics["entropy"] = head.entropy[:-1]
            metrics["counted"] = step.counted
    if not any(need):
        return value, metrics
    grads = [None if head.grad_hidden is None else head.grad_hidden[:-1], head.grad_weight]
    return attach(value, (hidden, weight), grads, main_grad if need[1] else None), metrics


class _Step:
    """The loss of one call: which rows, their slopes, and the metrics."""

    def __init__(self, head: Head, rows: LossRows, filter_eps: float, live: Tensor | None) -> None:
        if not filter_eps >= 0:
            raise ValueError(f"filter_eps must be 0 or more, got {filter_eps}.")
        self.head, self.loss, self.filter_eps = head, rows.loss, filter_eps
        whole = self.loss.every_masked_row or self.loss.ratio == "sequence"
        mask = rows.mask
        # Rows outside count for nothing; NaN advantages stay in, so that they are seen.
        self.counted = mask if whole else mask & (rows.advantages != 0)
        self.index = self._index(live)
        if live is not None:
            listed = torch.zeros(len(mask) + 1, dtype=torch.bool, device=mask.device)
            listed[live.to(mask.device, non_blocking=True)] = True
            self.counted = self.counted & listed[:-1]
        head.counted = self.counted
        self.rows = replace(rows, mask=self.counted)
        self.filtered = torch.zeros((), dtype=torch.float64, device=mask.device)

    def _index(self, live: Tensor | None) -> Tensor:
        """CPU int64 [L], the rows to compute."""
        if live is not None:
            if live.device.type != "cpu" or live.dtype != torch.int64 or live.dim() != 1:
                raise ValueError("live must be an int64 [L] tensor on the CPU.")
            if len(live) and not 0 <= int(live.min()) <= int(live.max()) < self.head.num_rows:
                raise ValueError(f"live must hold rows in 0..{self.head.num_rows - 1}.")
            return live
        if self.counted.device.type == "cpu":
            return self.counted.nonzero()[:, 0]
        return torch.arange(self.head.num_rows)

    def run(self, gradient: bool) -> dict[str, Any]:
        """All passes over the rows; the metrics."""
        head, loss = self.head, self.loss
        slopes: Slopes | None = self._chunk_slopes if gradient else None
        if loss.ratio == "sequence" and gradient:
            # A sequence's ratio needs all its tokens first: log-probs, then the pass with slopes.
            self._passes(None)
            slopes = self._known_slopes(self._row_slopes()[0])
        far = self._passes(slopes)
        metrics: dict[str, Any]
        _, metrics = self._row_slopes()
        metrics["softmax_fallback_rows"] = far
        metrics["filtered_rows"] = self.filtered
        metrics["backend"] = head.backend
        return metrics

    def _passes(self, slopes: Slopes | None) -> Tensor:
        """The anchored pass and, for rows out of its reach, the one through logits."""
        head = self.head
        if self.loss.entropy_coef:
            logits_pass(head, self.index, slopes)
            return self.counted.sum().double()
        anchored_pass(head, self.index, slopes)
        far = head.far[:-1]
        if int(head.fallback_count):
            logits_pass(head, far.nonzero()[:, 0].cpu(), slopes)
        return far.sum().double()

    def _row_slopes(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Slopes of all rows, from what the passes have found, and their metrics."""
        head = self.head
        return row_slopes(head.logp[:-1], head.entropy[:-1], self.rows, head.backend)

    def _chunk_slopes(
        self, chunk: Chunk, logp: Tensor, entropy: Tensor, good: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        counted = good & self.counted[chunk.rows]
        rows = self.rows.at(chunk.rows, counted)
        slope, _ = row_slopes(logp, entropy, rows, self.head.backend)
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
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    group: Any = None,
    vocab: int | None = None,
    sequence_parallel: bool = False,
    live: Tensor | None = None,
    memory_gib: float = DEFAULT_MEMORY_GIB,
    first_gemm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each row, nats, one GEMM, without gradient.

    Arguments as in `linear_policy_loss`; rows outside `live` are NaN. A log-prob below -80 takes
    the slow path.

    Returns:
        (logp [T], entropy [T]), float32, or float64 where the inputs are; equal on every rank.
    """
    with torch.no_grad():
        head = _head(
            hidden, weight, targets, None, temperature, group, vocab, sequence_parallel,
            memory_gib, first_gemm, [False, False],
        )  # fmt: skip
        check_rows(targets, head.shard.vocab, device=hidden.device)
        index = torch.arange(head.num_rows) if live is None else live
        anchored_pass(head, index, None)
        if int(head.fallback_count):
            logits_pass(head, head.far[:-1].nonzero()[:, 0].cpu(), None)
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return head.logp[:-1].to(dtype), head.entropy[:-1].to(dtype)


def _head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    anchor: Tensor | None,
    temperature: float | Tensor,
    group: Any,
    vocab: int | None,
    sequence_parallel: bool,
    memory_gib: float,
    first_gemm: str,
    need: list[bool],
) -> Head:
    """Check the inputs, choose the back end and the chunk, and allocate the results."""
    check_head(hidden, weight)
    if hidden.dtype == torch.float16:
        raise TypeError("hidden must be bfloat16, float32 or float64: E needs their range.")
    shard = shard_of(weight.shape[0], group, vocab)
    parts = shard.size if sequence_parallel else 1
    rows = hidden.shape[0] * parts
    if tuple(targets.shape) != (rows,):
        raise ValueError(
            f"targets must be [T] = [{rows}], hidden's rows over {parts} part(s), got "
            f"{tuple(targets.shape)}."
        )
    device = hidden.device
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    tau = as_temperature(temperature, rows, device)
    inv_tau = (
        tau.to(wide).reciprocal()
        if isinstance(tau, Tensor)
        else torch.full((rows,), 1.0 / tau, dtype=wide, device=device)
    )
    start = torch.zeros(rows, dtype=wide, device=device) if anchor is None else anchor.to(wide)
    start = torch.where(torch.isfinite(start), start, 0.0)
    engine, backend = _engine(hidden, weight, first_gemm)
    nan = torch.full((rows + 1,), torch.nan, dtype=torch.float64, device=device)
    return Head(
        hidden=hidden.detach(),
        weight=weight.detach(),
        targets=targets,
        anchor=start,
        inv_tau=inv_tau,
        shard=shard,
        parts=parts,
        engine=engine,
        backend=backend,
        chunk_rows=chunk_rows(engine, weight, shard, memory_gib),
        logp=nan,
        entropy=nan.clone(),
        far=torch.zeros(rows + 1, dtype=torch.bool, device=device),
        counted=torch.ones(rows, dtype=torch.bool, device=device),
        grad_hidden=hidden.new_zeros((hidden.shape[0] + 1, hidden.shape[1])) if need[0] else None,
        grad_weight=torch.zeros(weight.shape, dtype=wide, device=device) if need[1] else None,
    )


def _engine(hidden: Tensor, weight: Tensor, first_gemm: str) -> tuple[Any, str]:
    """The GEMM engine and the name of the back end that the metrics report."""
    if first_gemm not in ("auto", "fused", "blas"):
        raise ValueError(f"first_gemm must be auto, fused or blas, got {first_gemm!r}.")
    backend = pick_backend(hidden)
    if backend == "triton" and hidden.dtype != torch.bfloat16:
        backend = "torch"  # tensor cores would round float32 to TF32
    if backend == "torch":
        return TorchEngine(), backend
    if backend == "interpreter":
        if hidden.dtype != torch.float32 or hidden.shape[1] % 4:
            return TorchEngine(), "torch"  # the interpreter's bfloat16 products are wrong
        return TritonEngine("fused" if first_gemm == "auto" else first_gemm, True), backend
    best = first_backend(hidden.shape[1], weight.shape[0], hidden.dtype)
    if hidden.shape[1] % 8 or weight.stride(0) % 8:
        return TorchEngine(), "torch"  # TMA needs rows of whole 16 bytes
    return TritonEngine(best if first_gemm == "auto" else first_gemm, False), backend


def chunk_rows(engine: Any, weight: Tensor, shard: Shard, memory_gib: float) -> int:
    """Rows of a chunk, so that temporaries stay within `memory_gib` (two chunks are open under TP).

    ValueError when not even one row fits.
    """
    width = -(-weight.shape[0] // 8) * 8
    row = engine.row_bytes(width, weight.shape[1], weight.element_size())
    rows = int(memory_gib * 2**30 // (row * (2 if shard.size > 1 else 1)))
    if rows < 1:
        raise ValueError(f"memory_gib = {memory_gib} holds no row of {row} bytes; raise it.")
    return rows if rows < 128 else rows // 128 * 128
