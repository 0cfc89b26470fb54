"""The token metrics of the policy loss: each declared once, with its formula and reduction.

The torch loss evaluates `value`, the Triton row kernel stores the same numbers (triton/rows.py).
The actor combines them over micro-batches and ranks, a run's record reports them per token. A new
metric is an entry here and a line in triton/rows.py. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = object


class TokenTerms(Protocol):
    """What the loss knows of T tokens, float64 or bool [T]; rows outside the mask hold anything."""

    @property
    def counted(self) -> Tensor:
        """bool: the rows that count."""

    @property
    def logp(self) -> Tensor:
        """Log-prob under the policy, nats."""

    @property
    def old_logp(self) -> Tensor:
        """The trainer's log-prob before the update."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the next-token distribution, nats."""

    @property
    def loss(self) -> Tensor:
        """All terms of the loss, before the division by the denominator."""

    @property
    def kl(self) -> Tensor:
        """Estimate of the KL from the reference; 0 without one."""

    @property
    def ratio(self) -> Tensor:
        """p_policy / p_old, of the token or of its sequence."""

    @property
    def clipped_low(self) -> Tensor:
        """bool: held by the lower clip."""

    @property
    def clipped_high(self) -> Tensor:
        """bool: held by the upper clip."""

    @property
    def dual_clipped(self) -> Tensor:
        """bool: held by the dual clip."""

    @property
    def weight(self) -> Tensor:
        """Importance weight of the policy term: 1 when off, 0 when masked."""

    @property
    def truncated(self) -> Tensor:
        """bool: the weight was truncated at tis_clip."""

    @property
    def masked(self) -> Tensor:
        """bool: the weight was outside importance_min..importance_max."""

    @property
    def logprob_gap(self) -> Tensor:
        """|log-prob of the trainer - log-prob of the sampler|; 0 without the latter."""


@dataclass(frozen=True, kw_only=True)
class TokenMetric:
    """One number over the tokens of a loss."""

    name: str
    """Its name in the metrics that kernels return."""
    kind: Literal["total", "mean", "share", "largest"]
    """How a record reports it: a total as it is, a mean or a share divided by the number of tokens,
    the largest value over all tokens."""
    description: str
    value: Callable[[TokenTerms], Tensor]
    """Its value per token [T]; rows that do not count are left out by whoever reduces it."""

    @property
    def reduction(self) -> Literal["sum", "max"]:
        """How values combine over tokens, micro-batches and ranks."""
        return "max" if self.kind == "largest" else "sum"

    @property
    def label(self) -> str:
        """Its name in a step's record."""
        return self.name.removesuffix("_sum")


TOKEN_METRICS: tuple[TokenMetric, ...] = (
    TokenMetric(
        name="loss_sum",
        kind="total",
        description="Loss before the division by the denominator.",
        value=lambda terms: terms.loss,
    ),
    TokenMetric(
        name="tokens",
        kind="total",
        description="Tokens that the metrics are over.",
        value=lambda terms: terms.counted,
    ),
    TokenMetric(
        name="entropy_sum",
        kind="mean",
        description="Entropy of the policy's next-token distribution, nats.",
        value=lambda terms: terms.entropy,
    ),
    TokenMetric(
        name="ppo_kl_sum",
        kind="mean",
        description="Old minus current log-prob: how far the policy moved within the batch.",
        value=lambda terms: terms.old_logp - terms.logp,
    ),
    TokenMetric(
        name="kl_sum",
        kind="mean",
        description="Estimated KL divergence from the reference policy.",
        value=lambda terms: terms.kl,
    ),
    TokenMetric(
        name="ratio_sum",
        kind="mean",
        description="PPO ratio p_policy / p_old.",
        value=lambda terms: terms.ratio,
    ),
    TokenMetric(
        name="clipped_low",
        kind="share",
        description="Share of tokens held by the lower clip.",
        value=lambda terms: terms.clipped_low,
    ),
    TokenMetric(
        name="clipped_high",
        kind="share",
        description="Share of tokens held by the upper clip.",
        value=lambda terms: terms.clipped_high,
    ),
    TokenMetric(
        name="dual_clipped",
        kind="share",
        description="Share of tokens held by the dual clip.",
        value=lambda terms: terms.dual_clipped,
    ),
    TokenMetric(
        name="tis_weight_sum",
        kind="mean",
        description="Importance weight p_trainer / p_sampler after truncation and masking.",
        value=lambda terms: terms.weight,
    ),
    TokenMetric(
        name="tis_truncated",
        kind="share",
        description="Share of tokens whose importance weight was truncated at tis_clip.",
        value=lambda terms: terms.truncated,
    ),
    TokenMetric(
        name="importance_masked",
        kind="share",
        description="Share of tokens outside importance_min..importance_max.",
        value=lambda terms: terms.masked,
    ),
    TokenMetric(
        name="logprob_gap_sum",
        kind="mean",
        description="|trainer - sampler| log-prob, nats.",
        value=lambda terms: terms.logprob_gap,
    ),
    TokenMetric(
        name="logprob_gap_max",
        kind="largest",
        description="Largest |trainer - sampler| log-prob, nats.",
        value=lambda terms: terms.logprob_gap,
    ),
)
"""In the order of the Triton kernel's partial results."""

MAX_METRICS = frozenset(metric.name for metric in TOKEN_METRICS if metric.reduction == "max")
"""Metrics that combine over ranks and micro-batches by MAX; every other one by SUM."""
