"""What a step reports of sampling, and of the work that was left out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from passk_fast.actor.actor import StepResult
from passk_fast.actor.logprob_gap import RESOLUTION
from passk_fast.data import packing
from passk_fast.data.types import Prompt, Rollout, RolloutGroup
from passk_fast.kernels import TOKEN_METRICS
from passk_fast.model.flops import Work
from passk_fast.report.records import to_line
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.rollout.groups import MISSING
from passk_fast.run.metrics import (
    Savings,
    UpdateReport,
    gap_metrics,
    sampling_metrics,
    update_metrics,
)
from passk_fast.run.progress import Progress
from tests.run.cases import batch, gap_of, metrics, sequence


def test_savings_are_shares_of_training_everything_alone() -> None:
    everything = [sequence((1, 2, 3, 4), n, a) for n, a in ((2, 1.0), (3, -1.0))]
    everything += [sequence((5, 6, 7), n, 0.0) for n in (4, 1)]
    savings = Savings()
    savings.count(everything, everything[:2], shared=True)
    whole = (4 + 2) + (4 + 3) + (3 + 4) + (3 + 1)
    record = savings.record()
    assert record["saved_by_skipping"] == pytest.approx(11 / whole)
    # three prompt tokens once, and each response from the prompt's last token to its last but one
    assert record["work"] == vars(Work(tokens=3 + 2 + 3, scored=5, pairs=6 + (6 + 3) + (9 + 6)))
    assert record["saved_by_sharing"] == pytest.approx((13 - 8) / whole)


@pytest.mark.parametrize("shared", [True, False])
def test_work_is_what_is_packed(shared: bool) -> None:
    sequences = [sequence((1, 2, 3), n, 1.0) for n in (2, 5)]
    if shared:
        units = packing.shared_units(sequences, packing.prompt_groups(sequences), 1, 64)
        batch = packing.pack_shared(sequences, units, multiple=16, pad_id=0)
    else:
        batch = packing.pack(sequences, range(2), multiple=16, pad_id=0)
    savings = Savings()
    savings.count(sequences, sequences, shared=shared)
    savings.count_packed([batch])
    assert batch.real_tokens == savings.record()["work"]["tokens"]
    assert savings.record()["padding_share"] == 1 - batch.real_tokens / 16


def test_metrics_of_what_was_sampled() -> None:
    def group(lengths: list[int]) -> RolloutGroup:
        rollouts = tuple(
            Rollout(token_ids=(1,) * n, logprobs=(-1.0,) * n, text="", finished=n < 4)
            if n
            else MISSING
            for n in lengths
        )
        rewards = np.array([1.0 if n else math.nan for n in lengths])
        prompt = Prompt(id="p", text="", answer="", task="exact")
        return RolloutGroup(prompt=prompt, prompt_ids=(1,), rollouts=rollouts, rewards=rewards)

    sampled = SampledBatch(
        indices=[3, 1, 2],
        groups=[group([1, 2]), group([4, 0]), group([3, 3])],
        advantages_PN=np.array([[1.0, -1.0], [0.0, 0.0], [0.5, -0.5]]),
        end=2,
        rounds=2,
        stats=CollectStats(aborted=1, verifier_failures=5),
    )
    record = sampling_metrics(sampled)
    assert record["prompt_tokens"] == 3
    assert record["response_tokens"] == 13
    assert record["response_length"] == 13 / 5
    assert record["truncated_share"] == pytest.approx(1 / 5)
    assert record["aborted_share"] == 1 / 6
    assert (record["informative_groups"], record["surplus_informative_groups"]) == (1, 1)
    assert (record["sampled_prompts"], record["sampling_rounds"]) == (3, 2)
    assert record["verifier_failures"] == 5


@pytest.mark.megatron
def test_metrics_of_stopped_groups_are_bounds() -> None:
    record = metrics(batch([[1, 1, 1, math.nan], [1, 0, 0, 0]]))
    assert record["pass@1"] == 0.5
    assert record["pass@1_high"] == 0.625
    assert record["pass@k"] == record["pass@k_high"] == 0.75  # N = 4, k = 2: c >= 3 decides it
    assert record["censored_share"] == record["zero_advantage_share"] == 0.5
    assert record["reward"] == pytest.approx(4 / 7)
    assert record["correct_histogram"] == [0, 1, 0, 0, 0]
    assert record["censored_histogram"] == [0, 0, 0, 1, 0]


@pytest.mark.megatron
def test_zero_advantage_groups_are_counted() -> None:
    record = metrics(batch([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]))
    assert record["zero_advantage_share"] == 0.75  # N = 4, k = 2: signal at 1 <= c <= 2 only
    assert record["pass@1"] == 0.5
    assert record["pass@k"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)


@pytest.mark.megatron
def test_noise_rewards_are_not_recorded() -> None:
    record = metrics(batch([[1.0, 0.0, 0.0, 0.0]] * 50), flip_negatives=0.5)
    assert record["reward"] == record["pass@1"] == 0.25


COUNTS = ("lr", "micro_batches", "trained_tokens", "softmax_fallback_rows")
"""What an update reports besides means and shares: 0 of these is a measurement."""
OPTIONAL = ("expert_layers", "expert_peak_sum", "expert_peak_max", "balance_loss_sum",
            "softmax_fallback_rows", "routing_known", "routing_differs")  # fmt: skip
"""Sums that some models and losses report on top."""


def results_over_nothing() -> list[StepResult]:
    """One optimizer step in which no token counted."""
    names = (*(metric.name for metric in TOKEN_METRICS), *OPTIONAL, "loss")
    sums = dict.fromkeys(names, 0.0)
    sums["balance_loss_sum"] = 1e-9  # reported where it is not 0
    return [StepResult(sums=sums, grad_norm=math.nan, applied=True, gap=None, micro_batches=1)]


@pytest.mark.parametrize("results", [[], results_over_nothing()], ids=["no step", "no token"])
def test_update_metrics_over_no_tokens_are_null(results: list[StepResult]) -> None:
    report = UpdateReport(results=results, lr=1e-3, gap=None, savings=Savings())
    record = json.loads(to_line(update_metrics(report)))
    assert {name for name, value in record.items() if value is not None} <= set(COUNTS)
    assert record.keys() >= {"loss", "entropy", "kl", "logprob_gap", "logprob_gap_max", "grad_norm"}
    assert (record["lr"], record["trained_tokens"]) == (1e-3, 0)


def test_the_gap_of_a_step_without_one_is_null() -> None:
    progress = Progress(bad_gap_steps=2)
    nothing = {"mean": None, "quantile": None, "max": None, "bad_steps": 2}
    assert json.loads(to_line(gap_metrics(None, 0.99, progress))) == nothing
    some = gap_metrics(gap_of(0.1, 0.2, 0.6), 0.5, progress)
    assert some["mean"] == pytest.approx(0.3)
    assert some["max"] == pytest.approx(0.6)
    assert some["quantile"] == pytest.approx(0.2, rel=RESOLUTION)


def test_shares_of_no_work_are_null() -> None:
    savings = Savings()
    savings.count([], [], shared=True)
    savings.count_packed([])
    record = json.loads(to_line(savings.record()))
    assert record.pop("work") == {"tokens": 0, "scored": 0, "pairs": 0}
    assert set(record) == {"saved_by_skipping", "saved_by_sharing", "padding_share"}
    assert set(record.values()) == {None}


@pytest.mark.megatron
def test_metrics_of_responses_without_a_token_are_null() -> None:
    sampled = batch([[math.nan] * 4])
    empty = replace(sampled.groups[0], rollouts=(MISSING,) * 4)
    sampled = replace(sampled, groups=[empty])
    record = json.loads(to_line({**sampling_metrics(sampled), **metrics(sampled)}))
    over_tokens = (
        "response_length",
        "truncated_share",
        "prefix_hit_rate",
        "policy_entropy",
        "reward",
    )
    assert {name: record[name] for name in over_tokens} == dict.fromkeys(over_tokens)
    assert record["response_tokens"] == 0
