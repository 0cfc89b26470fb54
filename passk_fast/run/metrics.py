"""What one step reports: its groups, its update, and the work that was not done."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from itertools import groupby
from typing import Any

import numpy as np

from passk_fast.actor.actor import StepResult
from passk_fast.config import RunConfig
from passk_fast.data.types import PackedBatch, Sequence
from passk_fast.kernels import TOKEN_METRICS
from passk_fast.model.flops import Work
from passk_fast.rollout.dynamic_sampling import SampledBatch

_LOGPROB_GAP = {("float32", "cpu"): 1e-4, ("float32", "cuda"): 1e-2}
_LOGPROB_GAP_BF16 = 0.5


def sampling_metrics(drawn: SampledBatch, advantages_PN: np.ndarray) -> dict[str, Any]:
    """How sampling and refill went. Response tokens are those of whole responses."""
    live_P = (advantages_PN != 0.0).any(axis=1)
    sampled = [r for group in drawn.groups for r in group.rollouts if r.token_ids]
    lengths = [len(r.token_ids) for r in sampled]
    return {
        "response_tokens": int(sum(lengths)),
        "response_length": float(np.mean(lengths)),
        "truncated_share": 1.0 - float(np.mean([r.finished for r in sampled])),
        "verifier_failures": drawn.stats.verifier_failures,
        "aborted_share": drawn.stats.aborted / advantages_PN.size,
        "prefix_hit_rate": drawn.stats.cached_tokens / max(1, drawn.stats.prompt_tokens),
        "sampled_prompts": len(drawn.groups),
        "sampling_rounds": drawn.rounds,
        "informative_groups": int(live_P[: drawn.end].sum()),
        "surplus_informative_groups": int(live_P[drawn.end :].sum()),
    }


def update_metrics(results: SequenceOf[StepResult]) -> dict[str, float]:
    """Means over the tokens that were trained, of all optimizer steps of a batch."""
    total = {key: sum(r.sums[key] for r in results) for key in results[0].sums}
    tokens = max(1.0, total["tokens"])
    record: dict[str, float] = {}
    for metric in TOKEN_METRICS:
        if metric.kind in ("mean", "share"):
            record[metric.label] = total[metric.name] / tokens
        elif metric.kind == "largest":
            record[metric.label] = max(r.sums[metric.name] for r in results)
    record["loss"] = total["loss"] / len(results)
    record["lr"] = results[-1].sums["lr"]
    norms = [r.grad_norm for r in results if math.isfinite(r.grad_norm)]
    record["grad_norm"] = sum(norms) / len(norms) if norms else math.nan
    record["micro_batches"] = sum(r.micro_batches for r in results)
    record["trained_tokens"] = int(total["tokens"])
    if "expert_layers" in total:
        record |= _expert_metrics(results, total)
    if "softmax_fallback_rows" in total:  # rows that took the fused head's slow path
        record["softmax_fallback_rows"] = int(total["softmax_fallback_rows"])
    if "routing_known" in total:  # tokens times mixture layers
        record["routing_differs"] = total["routing_differs"] / max(1.0, total["routing_known"])
    return record


def _expert_metrics(results: SequenceOf[StepResult], total: dict[str, float]) -> dict[str, float]:
    """Load of the most used expert over the mean (1 is even), mean and largest over layers; the
    balancing loss of a layer without its coefficient."""
    layers = total["expert_layers"]
    record = {
        "expert_imbalance": total["expert_peak_sum"] / layers,
        "expert_imbalance_max": max(r.sums["expert_peak_max"] for r in results),
    }
    if total["balance_loss_sum"]:
        record["balance_loss"] = total["balance_loss_sum"] / layers
    return record


class Savings:
    """Tokens through the trainer's layers, and those that pruning and sharing left out."""

    def __init__(self) -> None:
        self.whole, self.live, self.done = Work(), Work(), Work()
        self.padded = self.real = 0

    def count(
        self, sampled: SequenceOf[Sequence], trained: SequenceOf[Sequence], *, shared: bool
    ) -> None:
        """Count one optimizer step: all sequences of its batch, and those that are trained."""
        live = _work(trained, shared=False)
        self.whole += _work(sampled, shared=False)
        self.live += live
        self.done += _work(trained, shared=True) if shared else live

    def count_packed(self, batches: SequenceOf[PackedBatch]) -> None:
        """Count this rank's micro-batches, for the padding in them."""
        for batch in batches:
            self.padded += len(batch.tokens_T)
            self.real += batch.real_tokens

    def record(self) -> dict[str, Any]:
        """Shares are of the tokens that training every sequence on its own would take."""
        whole = max(1, self.whole.tokens)
        return {
            "work": vars(self.done),
            "saved_by_skipping": 1.0 - self.live.tokens / whole,
            "saved_by_sharing": (self.live.tokens - self.done.tokens) / whole,
            "padding_share": 1.0 - self.real / max(1, self.padded),
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


def logprob_bound(config: RunConfig, device: str) -> float:
    """The first-step bound on |rollout - trainer log-prob| in nats."""
    if config.algorithm.max_logprob_gap > 0:
        return config.algorithm.max_logprob_gap
    return _LOGPROB_GAP.get((config.model.dtype, device), _LOGPROB_GAP_BF16)
