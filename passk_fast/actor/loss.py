"""What the last pipeline stage does with logits: token log-probs, the loss, and sums of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passk_fast.batch import PackedBatch
from passk_fast.config import AlgorithmConfig
from passk_fast.kernels.reference import (
    PolicyLoss,
    policy_loss_from_logprob,
    token_logprob_from_logits,
)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """All that the last stage needs besides the batch."""

    policy: PolicyLoss
    temperature: float
    vocab: int
    """True vocabulary size; padded columns never enter the softmax."""
    tensor_group: Any


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
        importance_cap=algorithm.importance_cap,
        kl_coef=algorithm.kl_coef,
        kl_estimator=algorithm.kl_estimator,
        entropy_coef=algorithm.entropy_coef,
    )


def _logprobs(logits: Tensor, batch: PackedBatch, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy [T] from this rank's vocabulary columns, logits [1, T, V / tp]."""
    group = settings.tensor_group
    return token_logprob_from_logits(
        logits[0],
        batch.targets_T,
        temperature=settings.temperature,
        group=group if group.size() > 1 else None,
        vocab=settings.vocab,
    )


def logprob_collector(
    batch: PackedBatch, settings: LossSettings
) -> Callable[..., tuple[Tensor, Tensor, TokenLogprobs]]:
    """Loss function of a forward-only pass: hands back log-probs and entropies."""

    def collect(logits: Tensor) -> tuple[Tensor, Tensor, TokenLogprobs]:
        logp, entropy = _logprobs(logits, batch, settings)
        result = TokenLogprobs(logprobs_T=logp, entropy_T=entropy, batch=batch)
        return logp.sum() * 0.0, torch.zeros((), dtype=torch.int), result

    return collect


def policy_loss(
    batch: PackedBatch, settings: LossSettings, denominator: float
) -> Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Loss function of a training pass; `denominator` is global, so losses just add."""

    def loss(logits: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logp, entropy = _logprobs(logits, batch, settings)
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
        metrics["worst"] = _worst_token(logp.detach(), batch)
        return value, torch.zeros((), dtype=torch.int), metrics

    return loss


def cross_entropy(
    batch: PackedBatch, settings: LossSettings, denominator: float
) -> Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Loss function of the supervised warm start: -log p of response tokens / denominator."""

    def loss(logits: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logp, _ = _logprobs(logits, batch, settings)
        value = -logp.masked_fill(~batch.mask_T, 0.0).sum() / denominator
        metrics = {"loss_sum": value.detach() * denominator, "tokens": batch.mask_T.sum()}
        return value, torch.zeros((), dtype=torch.int), metrics

    return loss


def _worst_token(logp_T: Tensor, batch: PackedBatch) -> Tensor:
    """The token where rollout and trainer disagree most, float64 [6]:
    gap, sequence index, position in the sequence, token id, rollout and trainer log-prob."""
    gap = (logp_T - batch.rollout_logprobs_T).abs().masked_fill(~batch.mask_T, -1.0)
    gap = torch.where(torch.isnan(gap), torch.inf, gap)
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
