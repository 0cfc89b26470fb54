"""The record of a step: its groups, its sampling, its update, and the work that was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import groupby

from passk_fast.actor.actor import StepResult
from passk_fast.actor.logprob_gap import LogprobGap
from passk_fast.advantage.metrics import group_metrics, mean, ratio
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.data.types import PackedBatch, Sequence
from passk_fast.kernels import TOKEN_METRICS
from passk_fast.model.flops import Work
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.progress import Progress
from passk_fast.tasks import answer_of

Record = dict[str, object]
"""Metric -> number, list of numbers, or a record of its own."""


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """What the update of one batch reports."""

    results: list[StepResult]
    """Of each optimizer step; none of a minibatch in which nothing was trained."""
    lr: float
    """Learning rate of the last minibatch."""
    gap: LogprobGap | None
    """Between sampler and trainer; None where nothing was trained, or the batch is off-policy."""
    savings: Savings


def step_record(
    batch: SampledBatch,
    update: UpdateReport,
    schedule: Schedule,
    progress: Progress,
    config: RunConfig,
) -> Record:
    """What a step reports, without its times.

    `schedule` and `progress` are those of the step: neither counts it yet.
    """
    step = progress.step
    return {
        "step": step + 1,
        **rollout_metrics(batch, schedule, step, config),
        **sampling_metrics(batch),
        **update_metrics(update),
        "sampler_gap": gap_metrics(update.gap, config.logprob_gap.quantile, progress),
        "off_policy_steps": batch.off_policy_steps,
        "skipped_steps": progress.skipped_steps,
        "gradient_spikes": progress.spikes,
        **update.savings.record(),
    }


def rollout_metrics(
    batch: SampledBatch, schedule: Schedule, step: int, config: RunConfig
) -> Record:
    """`group_metrics`, and what the schedule says at the step (counted from 0)."""
    rows = schedule.zero_advantage_rows(step)
    advantages_PN, k = batch.advantages_PN, config.algorithm.k
    masks = config.rollout.truncated == "mask"
    return {
        **group_metrics(batch.groups, advantages_PN, rows, k, answer_of, masks_truncated=masks),
        "k": schedule.stages(step)[0].k,
        "phase": schedule.phase(step),
        "lr_scale": schedule.lr_scale(step),
    }


def sampling_metrics(batch: SampledBatch) -> Record:
    """How sampling went, over all groups sampled.

    "prompt_tokens" counts each prompt once; "response_tokens" are those of whole responses.
    """
    informative_P = batch.informative_P
    whole = [r for group in batch.groups for r in group.rollouts if r.token_ids]
    lengths = [len(r.token_ids) for r in whole]
    stats = batch.stats
    return {
        "prompt_tokens": sum(len(group.prompt_ids) for group in batch.groups),
        "response_tokens": int(sum(lengths)),
        "response_length": mean(lengths),
        "truncated_share": 1.0 - mean([r.finished for r in whole]),
        "verifier_failures": stats.verifier_failures,
        "aborted_share": stats.aborted / batch.advantages_PN.size,
        "prefix_hit_rate": ratio(stats.cached_tokens, stats.prompt_tokens),
        "sampled_prompts": len(batch.groups),
        "sampling_rounds": batch.rounds,
        "informative_groups": int(informative_P[: batch.end].sum()),
        "surplus_informative_groups": int(informative_P[batch.end :].sum()),
    }


def update_metrics(update: UpdateReport) -> dict[str, float]:
    """Means over the tokens that were trained, of all optimizer steps of a batch.

    What is a mean or a largest value over no token is NaN, null in a record.
    """
    results = update.results
    total = {key: sum(r.sums[key] for r in results) for key in (results[0].sums if results else ())}
    tokens = total.get("tokens", 0.0)
    record: dict[str, float] = {}
    for metric in TOKEN_METRICS:
        if metric.kind in ("mean", "share"):
            record[metric.label] = ratio(total.get(metric.name, 0.0), tokens)
        elif metric.kind == "largest":
            largest = max((r.sums[metric.name] for r in results), default=math.nan)
            record[metric.label] = largest if tokens else math.nan
    record["loss"] = ratio(total["loss"], len(results)) if tokens else math.nan
    record["lr"] = update.lr
    norms = [r.grad_norm for r in results if math.isfinite(r.grad_norm)]
    record["grad_norm"] = ratio(sum(norms), len(norms))
    record["micro_batches"] = sum(r.micro_batches for r in results)
    record["trained_tokens"] = int(tokens)
    if "expert_layers" in total:
        record |= _expert_metrics(results, total)
    if "softmax_fallback_rows" in total:  # rows that took the fused head's slow path
        record["softmax_fallback_rows"] = int(total["softmax_fallback_rows"])
    if "routing_known" in total:  # tokens times mixture layers
        record["routing_differs"] = ratio(total["routing_differs"], total["routing_known"])
    return record


def gap_metrics(gap: LogprobGap | None, quantile: float, progress: Progress) -> Record:
    """The log-prob gap that [logprob_gap] bounds: mean, quantile and largest, NaN where there is
    none, and the number of bad steps in a row."""
    return {
        "mean": gap.mean if gap else math.nan,
        "quantile": gap.quantile(quantile) if gap else math.nan,
        "max": gap.largest if gap else math.nan,
        "bad_steps": progress.bad_gap_steps,
    }


def _expert_metrics(results: SequenceOf[StepResult], total: dict[str, float]) -> dict[str, float]:
    """Load of the most used expert over the mean (1 is even), mean and largest over layers; the
    balancing loss of a layer without its coefficient."""
    layers = total["expert_layers"]
    record = {
        "expert_imbalance": ratio(total["expert_peak_sum"], layers),
        "expert_imbalance_max": max(r.sums["expert_peak_max"] for r in results)
        if layers
        else math.nan,
    }
    if total["balance_loss_sum"]:
        record["balance_loss"] = ratio(total["balance_loss_sum"], layers)
    return record


class Savings:
    """Tokens through the trainer's layers, and those that skipping and sharing left out."""

    def __init__(self) -> None:
        self._sampled, self._informative, self._done = Work(), Work(), Work()
        self._padded = self._real = 0

    def count(
        self, sampled: SequenceOf[Sequence], trained: SequenceOf[Sequence], *, shared: bool
    ) -> None:
        """Count one optimizer step: all sequences of its batch, and those that are trained.

        `shared`: a prompt's tokens are trained once for all its responses.
        """
        alone = _work(trained, shared=False)
        self._sampled += _work(sampled, shared=False)
        self._informative += alone
        self._done += _work(trained, shared=True) if shared else alone

    def count_packed(self, batches: SequenceOf[PackedBatch]) -> None:
        """Count this rank's micro-batches, for the padding in them."""
        for batch in batches:
            self._padded += len(batch.tokens_T)
            self._real += batch.real_tokens

    def record(self) -> Record:
        """Shares are of the tokens that training every sequence on its own would take; of none
        they are NaN."""
        every, done = self._sampled.tokens, self._done.tokens
        informative = self._informative.tokens
        return {
            "work": vars(self._done),
            "saved_by_skipping": 1.0 - ratio(informative, every),
            "saved_by_sharing": ratio(informative - done, every),
            "padding_share": 1.0 - ratio(self._real, self._padded),
        }


def _work(sequences: SequenceOf[Sequence], *, shared: bool) -> Work:
    if not shared:
        parts = [Work.of_sequence(s.prompt_length, s.response_length) for s in sequences]
        return sum(parts, Work())
    groups = groupby(sequences, key=lambda s: s.token_ids[: s.prompt_length])
    return sum(
        (
            Work.of_shared(len(prompt), [s.response_length for s in group])
            for prompt, group in groups
        ),
        Work(),
    )
