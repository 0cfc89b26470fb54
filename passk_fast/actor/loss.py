"""What the last pipeline stage does with its output: token log-probs, the loss, sums of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from passk_fast.actor.logprob_gap import measure_gap
from passk_fast.data.types import PackedBatch
from passk_fast.kernels import (
    MAX_METRICS,
    LossRows,
    OutputHead,
    PolicyLoss,
    informative_rows,
    linear_policy_loss,
    token_logprob,
)
from passk_fast.kernels.reference import policy_loss_from_logprob, token_logprob_from_logits

MAXIMA = MAX_METRICS | {"expert_peak_max"}
"""Sums of a step that combine over micro-batches and ranks by maximum: the table of token metrics
says so, and the routers."""

CROSS_ENTROPY = PolicyLoss(objective="reinforce")
"""With ratio 1 and advantage 1, REINFORCE has the gradient of cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """All that the last stage needs besides the batch."""

    loss: PolicyLoss
    temperature: float
    vocab: int
    """True vocabulary size; padded columns never enter the softmax."""
    tensor_group: ProcessGroup
    memory_gib: float = 2.6
    """Temporary memory of the loss from hidden states."""
    soft_cap: float = 0.0
    """Of the logits; 0 is off."""

    @property
    def group(self) -> ProcessGroup | None:
        """The group that the vocabulary is sharded over; None on one rank."""
        return self.tensor_group if self.tensor_group.size() > 1 else None

    def head(self, hidden: Tensor, weight: Tensor) -> OutputHead:
        """The output layer under hidden states [T / tp, H]."""
        return OutputHead(
            hidden=hidden,
            weight=weight,
            temperature=self.temperature,
            group=self.group,
            vocab=self.vocab,
            sequence_parallel=self.group is not None,
            memory_gib=self.memory_gib,
            soft_cap=self.soft_cap,
        )


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log-probs of one micro-batch, with what is needed to put them back in place."""

    logprobs_T: Tensor
    entropy_T: Tensor
    batch: PackedBatch


LossResult = TokenLogprobs | dict[str, Tensor]
LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, LossResult]]
"""The last stage's output (logits, or hidden states) -> (loss, token count, results)."""


def rows_to_compute(batch: PackedBatch, settings: LossSettings) -> Tensor:
    """int64 [L]: rows of a batch on the CPU that have a gradient under the loss."""
    if settings.loss.every_masked_row:
        return batch.mask_T.nonzero()[:, 0]
    return informative_rows(batch.mask_T, batch.advantages_T)


def loss_rows(batch: PackedBatch, denominator: float) -> LossRows:
    """The rows of the policy loss of a micro-batch."""
    return LossRows(
        targets=batch.targets_T,
        advantages=batch.advantages_T,
        mask=batch.mask_T,
        denominator=denominator,
        old_logp=batch.old_logprobs_T,
        rollout_logp=batch.rollout_logprobs_T,
        reference_logp=batch.reference_logprobs_T,
        sequence_index=batch.sequence_index_T,
        row_index=batch.row_index_L,
    )


def _logprobs(
    out: Tensor, weight: Tensor | None, batch: PackedBatch, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [T]: from logits [1, T, V / tp], with gradient, or, where `weight` is
    given, from hidden states [1, T / tp, H], without."""
    if weight is not None:
        return token_logprob(settings.head(out[0], weight), batch.targets_T)
    return token_logprob_from_logits(
        out[0],
        batch.targets_T,
        temperature=settings.temperature,
        group=settings.group,
        vocab=settings.vocab,
        soft_cap=settings.soft_cap,
    )


def logprob_collector(
    batch: PackedBatch, settings: LossSettings, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of a forward-only pass: hands back log-probs and entropies.

    Here and below, `weight` is the output layer's where the stage puts out hidden states.
    """

    def collect(out: Tensor) -> tuple[Tensor, Tensor, LossResult]:
        logp, entropy = _logprobs(out, weight, batch, settings)
        result = TokenLogprobs(logprobs_T=logp, entropy_T=entropy, batch=batch)
        return logp.sum() * 0.0, torch.zeros((), dtype=torch.int), result

    return collect


def policy_loss(
    batch: PackedBatch, settings: LossSettings, denominator: float, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of a training pass; `denominator` is global, so losses just add."""
    rows = loss_rows(batch, denominator)

    def from_logits(out: Tensor) -> tuple[Tensor, Tensor, LossResult]:
        logp, entropy = _logprobs(out, None, batch, settings)
        value, metrics = policy_loss_from_logprob(logp, entropy, rows, settings.loss)
        gap = measure_gap(logp.detach(), batch, batch.mask_T)
        return value, torch.zeros((), dtype=torch.int), metrics | gap

    def from_hidden(out: Tensor) -> tuple[Tensor, Tensor, LossResult]:
        assert weight is not None
        value, report = linear_policy_loss(
            settings.head(out[0], weight),
            rows,
            settings.loss,
            main_grad=_main_grad(weight),
            keep_rows=True,
        )
        assert report.logp is not None
        assert report.counted is not None
        gap = measure_gap(report.logp, batch, report.counted)
        return value, torch.zeros((), dtype=torch.int), report.metrics | gap

    return from_logits if weight is None else from_hidden


def cross_entropy(
    batch: PackedBatch, settings: LossSettings, denominator: float, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of the supervised warm start: -log p of response tokens / denominator."""

    def from_logits(out: Tensor) -> tuple[Tensor, Tensor, LossResult]:
        logp, _ = _logprobs(out, None, batch, settings)
        value = -logp.masked_fill(~batch.mask_T, 0.0).sum() / denominator
        metrics = {"loss_sum": value.detach() * denominator, "tokens": batch.mask_T.sum()}
        return value, torch.zeros((), dtype=torch.int), metrics

    def from_hidden(out: Tensor) -> tuple[Tensor, Tensor, LossResult]:
        assert weight is not None
        rows = LossRows(
            targets=batch.targets_T,
            advantages=torch.ones_like(batch.advantages_T),
            mask=batch.mask_T,
            denominator=denominator,
        )
        value, report = linear_policy_loss(
            settings.head(out[0], weight),
            rows,
            CROSS_ENTROPY,
            main_grad=_main_grad(weight),
            keep_rows=True,
        )
        assert report.logp is not None
        loss_sum = -report.logp.masked_fill(~batch.mask_T, 0.0).sum()
        result = {"loss_sum": loss_sum, "tokens": batch.mask_T.sum()}
        return value, torch.zeros((), dtype=torch.int), result

    return from_logits if weight is None else from_hidden


def _main_grad(weight: Tensor) -> Tensor | None:
    """Megatron's float32 gradient buffer of the weight: added to directly, it is never rounded.

    The hook that would add `weight.grad` finds none (tied embeddings: only theirs). It may not be
    the one to start a reduction: `Actor` has overlap_grad_reduce off.
    """
    buffer: Tensor | None = getattr(weight, "main_grad", None)
    return buffer
