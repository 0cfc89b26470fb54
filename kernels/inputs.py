"""The typed inputs of the kernels: rows of the loss, and the output layer or its logits.

T packed tokens (rows), H hidden size, V columns of this rank's part of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from passk_fast.kernels.checks import check_head, check_logits, check_row_index, check_rows
from passk_fast.kernels.options import PolicyLoss
from passk_fast.kernels.shapes import Bool, Float, Group, Int
from passk_fast.kernels.shard import Shard, shard_of
from passk_fast.kernels.soft_cap import check_soft_cap

DEFAULT_MEMORY_GIB = 2.6
"""Temporary memory of a pass: a bfloat16 chunk of 8,192 rows at V = 151,936, H = 5120, TP = 1."""


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """What the token loss reads of T packed tokens besides their log-probs and entropies.

    Tensor-parallel ranks hold the same rows. Example: two tokens of one response,
    LossRows(targets=[7, 2], advantages=[.5, .5], mask=[True, True], denominator=2.0).
    """

    targets: Int[Tensor, " T"]
    """Next tokens, in 0..vocab - 1; not read by the loss from log-probs. A target outside is an
    error on a CPU and gives NaN on a GPU, where reading it would wait for the device."""
    advantages: Float[Tensor, " T"]
    mask: Bool[Tensor, " T"]
    """Rows outside add exactly 0 to loss, gradient and metrics, even where they hold NaN."""
    denominator: float
    """What the summed loss is divided by: the step's global one, fixed before packing."""
    old_logp: Float[Tensor, " T"] | None = None
    """The trainer's log-probs before the update; None: on-policy, every ratio is exactly 1."""
    rollout_logp: Float[Tensor, " T"] | None = None
    """The sampler's log-probs; needed by the importance options, reported as log-prob gap."""
    reference_logp: Float[Tensor, " T"] | None = None
    """The reference policy's log-probs; needed by the KL term."""
    sequence_index: Int[Tensor, " T"] | None = None
    """Which response a token belongs to, -1 for none; needed by the sequence ratio, whose responses
    must be whole."""
    row_index: Int[Tensor, " L"] | None = None
    """int64, on the CPU: the rows to compute, as `informative_rows` finds them while packing. Read
    by the kernels from hidden states. None: found by the kernel on a CPU; on a GPU all rows are
    computed, since counting would wait for the device."""

    def check(self, loss: PolicyLoss, vocab: int, device: torch.device) -> None:
        """TypeError or ValueError that names the field or option that is wrong or missing."""
        check_rows(self.targets, vocab, device=device, **self._vectors())
        check_row_index(self.row_index, self.targets.shape[0])
        self.check_options(loss)

    def check_options(self, loss: PolicyLoss) -> None:
        """ValueError for an option without the rows that it needs, or a bad denominator."""
        for name in ("tis_clip", "importance_min", "importance_max"):
            if getattr(loss, name) and self.rollout_logp is None:
                raise ValueError(f"PolicyLoss.{name} needs rollout_logp, got None.")
        if loss.ratio == "sequence" and self.sequence_index is None:
            raise ValueError("PolicyLoss.ratio = 'sequence' needs sequence_index, got None.")
        if loss.kl_coef and self.reference_logp is None:
            raise ValueError("PolicyLoss.kl_coef needs reference_logp, got None.")
        if not (math.isfinite(self.denominator) and self.denominator > 0):
            raise ValueError(f"denominator must be finite and above zero, got {self.denominator}.")

    def at(self, rows: Tensor, mask: Tensor) -> LossRows:
        """Some of the rows, with a mask of their own."""

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return LossRows(
            targets=self.targets[rows],
            advantages=self.advantages[rows],
            mask=mask,
            denominator=self.denominator,
            old_logp=take(self.old_logp),
            rollout_logp=take(self.rollout_logp),
            reference_logp=take(self.reference_logp),
            sequence_index=take(self.sequence_index),
        )

    def _vectors(self) -> dict[str, Tensor | None]:
        """Vectors beside the targets by name, those that are None too."""
        return {
            "old_logp": self.old_logp,
            "advantages": self.advantages,
            "mask": self.mask,
            "rollout_logp": self.rollout_logp,
            "reference_logp": self.reference_logp,
            "sequence_index": self.sequence_index,
        }


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """Hidden states and the output layer that turns them into logits, hidden @ weight.T.

    Example: OutputHead(hidden=x, weight=lm_head.weight) on one rank.
    """

    hidden: Float[Tensor, "rows H"]
    """[T, H] bfloat16, float32 or float64; this rank's [T / tp, H] with `sequence_parallel`."""
    weight: Float[Tensor, "V H"]
    """This rank's columns of the vocabulary: rank r of `group` holds r V to (r + 1) V - 1."""
    temperature: float | Float[Tensor, " T"] = 1.0
    """Logits are divided by it; above zero; a number or one per row."""
    group: Group = None
    """Tensor-parallel process group; None: the vocabulary is not sharded."""
    vocab: int | None = None
    """True vocabulary size; columns from it on are padding and never enter a softmax."""
    soft_cap: float = 0.0
    """Logits z become soft_cap tanh(z / soft_cap) before the temperature (Gemma 2); 0 is off."""
    sequence_parallel: bool = False
    """Hidden states are split over the ranks of `group` by rows."""
    memory_gib: float = DEFAULT_MEMORY_GIB
    """Bound of temporary memory; the number of rows per chunk follows from it."""
    first_gemm: Literal["auto", "fused", "blas"] = "auto"
    """Back end of the first GEMM under Triton (docs/kernels.md)."""

    def check(self) -> Shard:
        """This rank's part of the vocabulary; TypeError or ValueError that names a bad field."""
        check_head(self.hidden, self.weight)
        check_soft_cap(self.soft_cap)
        if self.first_gemm not in ("auto", "fused", "blas"):
            raise ValueError(f"first_gemm must be auto, fused or blas, got {self.first_gemm!r}.")
        if self.soft_cap and self.first_gemm == "fused":
            raise ValueError(
                "first_gemm = 'fused' has no soft cap of the logits (its registers would spill); "
                f"with soft_cap = {self.soft_cap} take 'auto' or 'blas'."
            )
        return shard_of(self.weight.shape[0], self.group, self.vocab)


@dataclass(frozen=True, kw_only=True)
class OutputLogits:
    """Logits that already exist. Example: OutputLogits(logits=z, vocab=50_257) with padding."""

    logits: Float[Tensor, "T V"]
    """Any float type, contiguous rows (the row stride is free). With `group`, this rank's columns
    as in `OutputHead`."""
    temperature: float | Float[Tensor, " T"] = 1.0
    """Logits are divided by it; above zero; a number or one per row."""
    group: Group = None
    """Tensor-parallel process group; None: the vocabulary is not sharded."""
    vocab: int | None = None
    """True vocabulary size; columns from it on are padding and never enter a softmax."""
    soft_cap: float = 0.0
    """As in `OutputHead`: `logits` are those before the cap."""

    def check(self, targets: Tensor) -> Shard:
        """This rank's part of the vocabulary; TypeError or ValueError that names a bad field."""
        check_logits(self.logits, targets)
        check_soft_cap(self.soft_cap)
        return shard_of(self.logits.shape[1], self.group, self.vocab)


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What a kernel says about a loss besides its value."""

    metrics: dict[str, Tensor]
    """float64 scalars over the rows computed: the table of metrics.py, and of the kernel from
    hidden states "softmax_fallback_rows" (done again with an online maximum) and "filtered_rows".
    They add over micro-batches and ranks, those in MAX_METRICS combine by maximum."""
    backend: str
    """What ran: "triton", "interpreter", "torch" or "reference"."""
    logp: Float[Tensor, " T"] | None = None
    """With keep_rows: log-probs, float64, NaN in rows that were not computed."""
    entropy: Float[Tensor, " T"] | None = None
    """With keep_rows: entropies, float64, NaN in rows that were not computed."""
    counted: Bool[Tensor, " T"] | None = None
    """With keep_rows: the rows that the metrics are over."""
