"""The update of a step: sequences of a batch -> one optimizer step per minibatch of prompts."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

import numpy as np

from passk_fast.actor.actor import Actor, StepResult
from passk_fast.actor.logprob_gap import LogprobGap
from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.data.types import PackedBatch, RolloutGroup, Sequence
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.clock import Clock
from passk_fast.run.guards import Guards
from passk_fast.run.metrics import Savings, UpdateReport
from passk_fast.run.progress import Progress


@dataclass(frozen=True, kw_only=True)
class _Minibatch:
    """What one optimizer step trains."""

    sequences: list[Sequence]
    denominator: float
    batches: list[PackedBatch]


class PolicyUpdate:
    """Trains the actor on batches. All ranks call it together."""

    def __init__(
        self,
        config: RunConfig,
        actor: Actor,
        schedule: Schedule,
        guards: Guards,
        progress: Progress,
    ) -> None:
        self._config, self._actor, self._schedule = config, actor, schedule
        self._guards, self._progress = guards, progress

    def __call__(self, batch: SampledBatch, clock: Clock) -> UpdateReport:
        """An optimizer step for each minibatch that has something to train; phases "pack",
        "logprob" and "train".

        A minibatch without: no forward pass, and weights, moments and weight decay stay as they
        are. The learning rate's schedule counts it. DivergedError as `Guards.check_update` and
        `check_logprobs`, which sees the batches that the weights as they were before had sampled.
        """
        count = self._config.algorithm.minibatches
        savings, minibatches = Savings(), []
        for m in range(count):
            part = slice(batch.end * m // count, batch.end * (m + 1) // count)
            with clock.span("pack"):
                sequences = to_sequences(
                    batch.groups[part],
                    batch.advantages_PN[part],
                    drop_truncated=self._config.rollout.truncated == "mask",
                )
                minibatch = self._pack(sequences, savings)
            with clock.span("logprob"):
                minibatches.append(self._with_logprobs(minibatch))
        with clock.span("train"):
            results = [self._optimize(minibatch) for minibatch in minibatches]
            every = self._config.parallel.check_replicas_every
            if every and (self._progress.step + 1) % every == 0:
                self._actor.check_replicas()
        gap = None if batch.off_policy_steps else self._checked_gap(minibatches, results)
        return UpdateReport(
            results=[result for result in results if result is not None],
            lr=self._learning_rate(),
            gap=gap,
            savings=savings,
        )

    def trains(self, batch: SampledBatch) -> bool:
        """Whether a batch has something to train; if not, its update leaves the weights alone."""
        advantages_PN = batch.advantages_PN[: batch.end]
        every = not self._config.skips_zero_advantage
        return advantages_PN.size > 0 and (every or bool(advantages_PN.any()))

    def _pack(self, sequences: list[Sequence], savings: Savings) -> _Minibatch:
        algorithm = self._config.algorithm
        # The denominator counts what was sampled: it is fixed before any sequence is left out.
        denominator = loss_denominator(algorithm.loss_denominator, sequences)
        trained = sequences
        if self._config.skips_zero_advantage:
            trained = [s for s in sequences if s.advantage != 0.0]
        batches = self._actor.pack(trained) if trained else []
        savings.count(sequences, trained, shared=self._actor.shares_prompts(trained))
        savings.count_packed(batches)
        return _Minibatch(sequences=trained, denominator=denominator, batches=batches)

    def _with_logprobs(self, minibatch: _Minibatch) -> _Minibatch:
        """With the sampling policy's own log-probs, where earlier minibatches move the weights."""
        if not minibatch.sequences:
            return minibatch
        several = self._config.algorithm.minibatches > 1
        batches = self._actor.prepare(minibatch.batches, old_logprobs=several)
        return replace(minibatch, batches=batches)

    def _optimize(self, minibatch: _Minibatch) -> StepResult | None:
        """None where nothing is trained."""
        self._progress.optimizer_step += 1
        if not minibatch.sequences:
            return None
        denominator = minibatch.denominator
        result = self._actor.policy_step(
            minibatch.batches,
            denominator=denominator,
            lr=self._learning_rate(),
            largest_norm=self._guards.largest_norm,
        )
        result.sums["loss"] = result.sums["loss_sum"] / denominator
        self._guards.check_update(result)
        return result

    def _checked_gap(
        self, minibatches: SequenceOf[_Minibatch], results: SequenceOf[StepResult | None]
    ) -> LogprobGap | None:
        """The log-prob gap of a step, over its minibatches; None where nothing was trained."""
        sequences: list[Sequence] = []
        gaps = []
        for minibatch, result in zip(minibatches, results, strict=True):
            if result is not None and result.gap is not None:
                gaps.append(result.gap.behind(len(sequences)))
            sequences += minibatch.sequences
        gap = LogprobGap.merge(gaps)
        if gap is not None:
            self._guards.check_logprobs(gap, sequences)
        return gap

    def _learning_rate(self) -> float:
        """Of the optimizer step that was counted last."""
        config, progress = self._config, self._progress
        total = config.steps * config.algorithm.minibatches
        lr = learning_rate(config.optim, progress.optimizer_step - 1, total)
        return lr * self._schedule.lr_scale(progress.step)


def to_sequences(
    groups: SequenceOf[RolloutGroup], advantages_PN: np.ndarray, *, drop_truncated: bool = False
) -> list[Sequence]:
    """P groups and their advantages [P, N] -> P * N sequences, in order.

    `drop_truncated` leaves out responses that were cut at the token limit: no term of the loss
    and no denominator counts them.
    """
    return [
        Sequence(
            token_ids=group.prompt_ids + rollout.token_ids,
            prompt_length=len(group.prompt_ids),
            rollout_logprobs=rollout.logprobs,
            advantage=float(advantage),
            routed_experts=rollout.routed_experts,
        )
        for group, advantages_N in zip(groups, advantages_PN, strict=True)
        for rollout, advantage, cut in zip(
            group.rollouts, advantages_N, group.truncated, strict=True
        )
        if not (cut and drop_truncated)
    ]


def loss_denominator(kind: str, sequences: SequenceOf[Sequence]) -> float:
    """What the summed loss is divided by, at least 1 (algorithm.loss_denominator).

    "sequences": their number; "response_tokens": all tokens of responses; "informative_tokens":
    those of responses with non-zero advantage.
    """
    if kind == "sequences":
        return float(max(1, len(sequences)))
    counted = [s for s in sequences if kind == "response_tokens" or s.advantage != 0.0]
    return float(max(1, sum(s.response_length for s in counted)))
