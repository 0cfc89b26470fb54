"""What the last pipeline stage does with logits: token log-probs, the loss, and sums of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passk_fast.config import AlgorithmConfig
from passk_fast.data.types import PackedBatch
from passk_fast.kernels import PolicyLoss, linear_policy_loss, live_rows, token_logprob
from passk_fast.kernels.reference import policy_loss_from_logprob, token_logprob_from_logits

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, Any]]
"""The last stage's output (logits, or hidden states) -> (loss, token count, results)."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """All that the last stage needs besides the batch."""

    policy: PolicyLoss
    temperature: float
    vocab: int
    """True vocabulary size; padded columns never enter the softmax."""
    tensor_group: Any
    memory_gib: float = 2.6
    """Temporary memory of the loss from hidden states."""

    def head(self) -> dict[str, Any]:
        """What every loss from hidden states is called with."""
        sharded = self.tensor_group.size() > 1
        return {
            "temperature": self.temperature,
            "group": self.tensor_group if sharded else None,
            "vocab": self.vocab,
            "sequence_parallel": sharded,
            "memory_gib": self.memory_gib,
        }


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log-probs of one micro-batch, with what is needed to put them back in place."""

    logprobs_T: Tensor
    entropy_T: Tensor
    batch: PackedBatch


def policy_options(algorithm: AlgorithmConfig) -> PolicyLoss:
    """The loss options of a configuration."""
    return PolicyLoss(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        tis_clip=algorithm.tis_clip,
        kl_coef=algorithm.kl_coef,
        kl_estimator=algorithm.kl_estimator,
        entropy_coef=algorithm.entropy_coef,
    )


def live_rows_of(batch: PackedBatch, settings: LossSettings) -> Tensor:
    """int64 [L]: rows of a batch on the CPU that have a gradient under the loss."""
    if settings.policy.every_masked_row:
        return batch.mask_T.nonzero()[:, 0]
    return live_rows(batch.mask_T, batch.advantages_T)


def _logprobs(
    out: Tensor, weight: Tensor | None, batch: PackedBatch, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [T]: from logits [1, T, V / tp], with gradient, or, where `weight` is
    given, from hidden states [1, T / tp, H], without."""
    if weight is not None:
        return token_logprob(out[0], weight, batch.targets_T, **settings.head())
    group = settings.tensor_group
    return token_logprob_from_logits(
        out[0],
        batch.targets_T,
        temperature=settings.temperature,
        group=group if group.size() > 1 else None,
        vocab=settings.vocab,
    )


def logprob_collector(
    batch: PackedBatch, settings: LossSettings, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of a forward-only pass: hands back log-probs and entropies.

    Here and below, `weight` is the output layer's where the stage puts out hidden states.
    """

    def collect(out: Tensor) -> tuple[Tensor, Tensor, TokenLogprobs]:
        logp, entropy = _logprobs(out, weight, batch, settings)
        result = TokenLogprobs(logprobs_T=logp, entropy_T=entropy, batch=batch)
        return logp.sum() * 0.0, torch.zeros((), dtype=torch.int), result

    return collect


def policy_loss(
    batch: PackedBatch, settings: LossSettings, denominator: float, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of a training pass; `denominator` is global, so losses just add."""

    def from_logits(out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logp, entropy = _logprobs(out, None, batch, settings)
        old = logp.detach() if batch.old_logprobs_T is None else batch.old_logprobs_T
        value, metrics = policy_loss_from_logprob(
            logp,
            entropy,
            old_logp=old,
            rollout_logp=batch.rollout_logprobs_T,
            reference_logp=batch.reference_logprobs_T,
            advantages=batch.advantages_T,
            mask=batch.mask_T,
            denominator=denominator,
            loss=settings.policy,
        )
        metrics["worst"] = _worst_token(logp.detach(), batch, batch.mask_T)
        return value, torch.zeros((), dtype=torch.int), metrics

    def from_hidden(out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert weight is not None
        value, metrics = linear_policy_loss(
            out[0],
            weight,
            batch.targets_T,
            batch.old_logprobs_T,
            batch.advantages_T,
            batch.mask_T,
            denominator=denominator,
            loss=settings.policy,
            rollout_logp=batch.rollout_logprobs_T,
            reference_logp=batch.reference_logprobs_T,
            live=batch.live_L,
            keep_rows=True,
            main_grad=_main_grad(weight),
            **settings.head(),
        )
        rows = {name: metrics.pop(name) for name in ("logp", "entropy", "counted", "backend")}
        metrics["worst"] = _worst_token(rows["logp"], batch, rows["counted"])
        return value, torch.zeros((), dtype=torch.int), metrics

    return from_logits if weight is None else from_hidden


def cross_entropy(
    batch: PackedBatch, settings: LossSettings, denominator: float, weight: Tensor | None = None
) -> LossFunction:
    """Loss function of the supervised warm start: -log p of response tokens / denominator."""

    def from_logits(out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logp, _ = _logprobs(out, None, batch, settings)
        value = -logp.masked_fill(~batch.mask_T, 0.0).sum() / denominator
        metrics = {"loss_sum": value.detach() * denominator, "tokens": batch.mask_T.sum()}
        return value, torch.zeros((), dtype=torch.int), metrics

    def from_hidden(out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert weight is not None
        # With ratio 1 and advantage 1, REINFORCE has cross-entropy's gradient.
        value, metrics = linear_policy_loss(
            out[0],
            weight,
            batch.targets_T,
            None,
            torch.ones_like(batch.advantages_T),
            batch.mask_T,
            denominator=denominator,
            loss=PolicyLoss(objective="reinforce"),
            keep_rows=True,
            main_grad=_main_grad(weight),
            **settings.head(),
        )
        loss_sum = -metrics["logp"].masked_fill(~batch.mask_T, 0.0).sum()
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


def _worst_token(logp_T: Tensor, batch: PackedBatch, mask_T: Tensor) -> Tensor:
    """The token of `mask_T` where rollout and trainer disagree most, float64 [6]:
    gap, sequence index, position in the sequence, token id, rollout and trainer log-prob."""
    gap = (logp_T - batch.rollout_logprobs_T).abs()
    gap = torch.where(torch.isnan(gap), torch.inf, gap).masked_fill(~mask_T, -1.0)
    t = int(gap.argmax())
    row = (
        float(gap[t]),
        float(batch.sequence_index_T[t]),
        float(batch.positions_T[t] + 1),
        float(batch.targets_T[t]),
        float(batch.rollout_logprobs_T[t]),
        float(logp_T[t]),
    )
    return torch.tensor(row, dtype=torch.float64)
