"""One pass over the output layer: the bookkeeping of `linear_policy_loss` and `token_logprob`.

Rows go through in chunks (row_plan.py). The anchor is old_logp, else the sampler's log-prob, else
0; any value within 80 nats of logp gives the same result.
"""

# For each chunk: target logits (summed over shards), the first GEMM with the exponential anchored
# at kappa = z_y / tau - anchor, one SUM all-reduce of the row statistics, then slopes, then the two
# gradient GEMMs. Under tensor parallelism the next chunk's first GEMM is issued before a chunk's
# all-reduce is waited for.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from passk_fast.kernels.backend import Backend
from passk_fast.kernels.engines import GemmEngine, mm_float32
from passk_fast.kernels.logit_rows import LogitInput, logit_gradient, logit_rows
from passk_fast.kernels.row_plan import Chunk, plan_chunks
from passk_fast.kernels.shard import Shard, Work
from passk_fast.kernels.soft_cap import soft_cap_slope, soft_capped

ANCHOR_REACH = 80.0
"""|anchor - logp| from which a row is done again with an online maximum."""

Slopes = Callable[[Chunk, Tensor, Tensor, Tensor], tuple[Tensor, "Tensor | None"]]
"""(chunk, logp, entropy, which rows count) -> slopes c and entropy slopes h (or None)."""


@dataclass
class HeadRun:
    """Inputs that stay the same over a pass, and the results."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    anchor: Tensor
    inv_tau: Tensor
    """float32 (float64 with float64 inputs) [T]"""
    shard: Shard
    parts: int
    """1, or the number of ranks that hold parts of the rows (sequence parallel)."""
    engine: GemmEngine
    backend: Backend
    chunk_rows: int
    soft_cap: float
    """As in `OutputHead`; 0 is off."""
    logp: Tensor
    """float64 [T + 1]; the last slot takes what padding rows write."""
    entropy: Tensor
    fallback: Tensor
    """bool [T + 1]: counted rows that the anchor did not reach, which need a real softmax."""
    counted: Tensor
    """bool [T]: rows whose result matters."""
    grad_hidden: Tensor | None = None
    grad_weight: Tensor | None = None
    fallback_count: HostCount | None = None
    """Of `fallback`, on its way to the host since the last chunk's statistics."""

    @property
    def num_rows(self) -> int:
        return self.targets.shape[0]

    @property
    def columns(self) -> Tensor:
        """The weight's true columns [V_true, H]; what phantom ones hold never enters a product."""
        return self.weight[: self.shard.num_columns]

    def chunks(self, index: Tensor, rows: int | None = None) -> list[Chunk]:
        """Chunks of the rows `index`, each of at most `rows` rows (default: `chunk_rows`)."""
        return plan_chunks(
            index,
            self.num_rows,
            self.shard,
            self.parts,
            rows or self.chunk_rows,
            self.hidden.device,
        )

    def fallback_rows(self) -> Tensor | None:
        """CPU int64 [L] of `fallback` after an anchored pass; None where there are none."""
        if self.fallback_count is None or not int(self.fallback_count):
            return None
        return self.fallback[:-1].nonzero()[:, 0].cpu()

    def gather(self, chunk: Chunk) -> tuple[Tensor, Work]:
        """The chunk's hidden states [n, H], a copy, and the handle of their all-gather."""
        part = self.hidden.index_select(0, chunk.local)
        if self.parts == 1:
            return part, None
        return self.shard.gather(part, async_op=True)

    def add_hidden_grad(self, chunk: Chunk, part: Tensor) -> None:
        """Sum a chunk's dX over shards and put it in place."""
        assert self.grad_hidden is not None
        if self.parts > 1:
            part = self.shard.scatter_sum(part)[0]
        else:
            self.shard.sum(part)
        self.grad_hidden.index_copy_(0, chunk.local_slots, part)


class HostCount:
    """A device count on its way to the host. Reading it waits for the copy, not for work queued
    after it: the last chunk's gradient GEMMs keep the device busy meanwhile."""

    def __init__(self, count: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._value = count
        if count.device.type == "cuda":
            self._value = torch.empty(count.shape, dtype=count.dtype, pin_memory=True)
            self._value.copy_(count, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def __int__(self) -> int:
        if self._event is not None:
            self._event.synchronize()
        return int(self._value)


@dataclass
class _Open:
    """A chunk between its first GEMM and its gradients."""

    chunk: Chunk
    x: Tensor
    e: Tensor | None
    stats: Tensor
    work: Work
    z: Tensor
    """The target's logit, under the soft cap."""
    kappa: Tensor
    column: Tensor
    owned: Tensor


def anchored_pass(head: HeadRun, index: Tensor, slopes: Slopes | None) -> None:
    """Log-probs, entropies and (with `slopes`) gradients of the rows `index` (CPU int64 [L])."""
    chunks = head.chunks(index)
    head.fallback_count = None
    depth = 2 if head.shard.size > 1 and len(chunks) > 1 else 1
    waiting: list[_Open] = []
    ahead = head.gather(chunks[0]) if chunks else None
    for i, chunk in enumerate(chunks):
        assert ahead is not None
        x, work = ahead
        if work is not None:
            work.wait()
        ahead = head.gather(chunks[i + 1]) if i + 1 < len(chunks) else None
        waiting.append(_first(head, chunk, x, keep=slopes is not None))
        if len(waiting) == depth:
            _finish(head, waiting.pop(0), slopes, last=i + 1 == len(chunks) and not waiting)
    for i, left in enumerate(waiting):
        _finish(head, left, slopes, last=i + 1 == len(waiting))


def _first(head: HeadRun, chunk: Chunk, x: Tensor, *, keep: bool) -> _Open:
    """Target logits, kappa, the first GEMM, and the start of the all-reduce of its row sums."""
    owned, column = head.shard.owned(head.targets[chunk.rows])
    z = head.engine.target_logit(x, head.weight, column, owned)
    head.shard.sum(z)
    z = soft_capped(z, head.soft_cap)
    inv_tau = head.inv_tau[chunk.rows]
    kappa = z * inv_tau - head.anchor[chunk.rows].to(z.dtype)
    kappa = torch.where(torch.isfinite(kappa), kappa, 0.0)
    if head.shard.num_columns:
        e, stats = head.engine.first(x, head.columns, inv_tau, kappa, keep)
    else:  # a shard of padding alone
        e, stats = (x.new_empty((len(x), 0)) if keep else None), kappa.new_zeros((2, len(x)))
    work = head.shard.sum(stats, async_op=True)
    return _Open(chunk, x, e, stats, work, z, kappa, column, owned)


def _finish(head: HeadRun, at: _Open, slopes: Slopes | None, *, last: bool) -> None:
    """From row sums to log-probs, slopes and gradients of one chunk."""
    if at.work is not None:
        at.work.wait()
    chunk = at.chunk
    total, moment = at.stats.double()
    log_sum = total.log()
    near = torch.isfinite(total) & (total > 0) & (log_sum.abs() < ANCHOR_REACH)
    inv_tau = head.inv_tau[chunk.rows]
    # kappa is what the GEMM subtracted, rounding included, so its rounding cancels here.
    at_target = at.z.double() * inv_tau.double() - at.kappa.double()
    targets = head.targets[chunk.rows]
    known = (targets >= 0) & (targets < head.shard.vocab)
    logp = torch.where(known, at_target - log_sum, torch.nan)
    entropy = log_sum - moment / total
    head.logp[chunk.slots] = logp
    head.entropy[chunk.slots] = entropy
    head.fallback[chunk.slots] = ~near & chunk.valid & head.counted[chunk.rows]
    if last:
        head.fallback_count = HostCount(head.fallback[:-1].sum())
    if slopes is None:
        return
    good = near & chunk.valid
    slope, _ = slopes(chunk, logp, entropy, good)
    slope = torch.where(good, slope, 0.0)
    assert at.e is not None
    r = (-slope * inv_tau.double() / total).masked_fill(~good | (slope == 0), 0.0)
    part = None
    if head.shard.num_columns:
        at_target = at_target.exp() - total
        if head.soft_cap:  # the engine has multiplied the other columns by theirs
            at_target *= soft_cap_slope(at.z.double(), head.soft_cap)
        _subtract_sum(at, at_target.to(at.e.dtype))
        dw = None if head.grad_weight is None else head.grad_weight[: head.shard.num_columns]
        need = head.grad_hidden is not None
        part = head.engine.gradient(at.e, at.x, r.to(at.z.dtype), head.columns, dw, need)
    if head.grad_hidden is not None:
        head.add_hidden_grad(chunk, at.x.new_zeros(at.x.shape) if part is None else part)


def _subtract_sum(at: _Open, value: Tensor) -> None:
    """E[t, y] := E[t, y] - S (`value`, float64 arithmetic), on the rank that holds column y."""
    assert at.e is not None
    row = torch.arange(len(value), device=value.device)
    at.e[row, at.column] = torch.where(at.owned, value, at.e[row, at.column])


def logits_pass(head: HeadRun, index: Tensor, slopes: Slopes | None) -> None:
    """The same through float32 logits, whose maximum is found online: any ratio, entropy bonus.

    Three GEMMs too, and two more passes over a chunk's logits; chunks are smaller, as logits are
    float32.
    """
    for chunk in head.chunks(index, max(1, head.chunk_rows // 4)):
        x, work = head.gather(chunk)
        if work is not None:
            work.wait()
        _logits_chunk(head, chunk, x, slopes)


def _logits_chunk(head: HeadRun, chunk: Chunk, x: Tensor, slopes: Slopes | None) -> None:
    z = mm_float32(x, head.weight.T)
    of = LogitInput(
        logits=z,
        targets=head.targets[chunk.rows],
        temperature=1.0 / head.inv_tau[chunk.rows],
        shard=head.shard,
        backend=head.backend,
        soft_cap=head.soft_cap,
    )
    rows = logit_rows(of, chunk.valid)
    logp, entropy = rows.logp.double(), rows.entropy.double()
    head.logp[chunk.slots] = logp
    head.entropy[chunk.slots] = entropy
    if slopes is None:
        return
    slope, bonus = slopes(chunk, logp, entropy, chunk.valid)
    dz = logit_gradient(rows, slope, bonus, out=z).to(x.dtype)
    dz = dz[:, : head.shard.num_columns]
    if head.grad_weight is not None:
        head.grad_weight[: head.shard.num_columns] += mm_float32(dz.T, x)
    if head.grad_hidden is not None:
        head.add_hidden_grad(chunk, mm_float32(dz, head.columns).to(x.dtype))
