"""The table of token metrics is what the kernels return and what they say of it."""

from __future__ import annotations

import math

import pytest

import passk_fast.kernels as kernels
from passk_fast.kernels import MAX_METRICS, TOKEN_METRICS, PolicyLoss
from tests.kernels import cases

NAMES = [metric.name for metric in TOKEN_METRICS]


def test_every_metric_is_declared_once_and_described() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for metric in TOKEN_METRICS:
        assert metric.description.endswith("."), metric.name
        assert (metric.name in MAX_METRICS) == (metric.reduction == "max")


def test_labels_in_a_record_are_those_of_the_field() -> None:
    labels = {m.label for m in TOKEN_METRICS if m.kind != "total"}
    assert {"entropy", "ppo_kl", "kl", "ratio", "clipped_high", "importance_masked"} <= labels
    assert "logprob_gap" in labels
    assert "logprob_gap_max" in labels
    assert not any(label.endswith("_sum") for label in labels)


def test_both_roads_return_the_tables_numbers() -> None:
    data = cases.problem()
    logits = cases.from_logits(kernels.policy_loss, data)["metrics"]
    hidden = cases.from_hidden(kernels.linear_policy_loss, data)["metrics"]
    assert list(logits) == NAMES
    assert set(hidden) - set(NAMES) == {"softmax_fallback_rows", "filtered_rows"}


@pytest.mark.parametrize("bound", [{"importance_min": 0.97}, {"importance_max": 1.03}])
def test_masked_tokens_are_counted_and_carry_no_weight(bound: dict[str, float]) -> None:
    data = cases.problem()
    got = cases.from_logits(kernels.policy_loss, {**data, "loss": PolicyLoss(**bound)})
    weight = (data["old_logp"] - data["rollout_logp"]).exp()[data["mask"]]
    outside = (weight < bound.get("importance_min", 0)) | (
        weight > bound.get("importance_max", math.inf)
    )
    masked = got["metrics"]["importance_masked"]
    assert 0 < masked == outside.sum() < len(weight)
    assert got["metrics"]["tis_weight_sum"] == len(weight) - masked
