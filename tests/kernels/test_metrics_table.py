"""One table of token metrics: names, reductions and values, for torch and Triton alike."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from passk_fast.kernels import MAX_METRICS, TOKEN_METRICS
from passk_fast.kernels.metrics import TokenMetric
from passk_fast.kernels.triton.rows import METRICS

BY_NAME = {metric.name: metric for metric in TOKEN_METRICS}


def test_names_are_unique_and_described() -> None:
    assert len(BY_NAME) == len(TOKEN_METRICS)
    assert len({metric.label for metric in TOKEN_METRICS}) == len(TOKEN_METRICS)
    assert all(metric.description.endswith(".") for metric in TOKEN_METRICS)


def test_triton_stores_them_in_the_tables_order() -> None:
    assert tuple(metric.name for metric in TOKEN_METRICS) == METRICS


@pytest.mark.parametrize("metric", TOKEN_METRICS, ids=lambda metric: metric.name)
def test_a_sum_is_named_as_one(metric: TokenMetric) -> None:
    """`_sum` says that the record divides by the number of tokens; the loss is the exception."""
    if metric.kind == "mean":
        assert metric.name.endswith("_sum")
        assert metric.label == metric.name.removesuffix("_sum")
    assert (metric.name in MAX_METRICS) == (metric.kind == "largest")
    assert metric.reduction == ("max" if metric.kind == "largest" else "sum")


class Terms:
    """Three tokens, of which two count."""

    counted = torch.tensor([True, True, False])
    logp = torch.tensor([-1.0, -2.0, -9.0])
    old_logp = torch.tensor([-1.5, -2.0, 0.0])
    entropy = torch.tensor([0.5, 0.25, 9.0])
    loss = torch.tensor([1.0, -2.0, 9.0])
    kl = torch.tensor([0.1, 0.0, 9.0])
    ratio = torch.tensor([1.5, 1.0, 9.0])
    clipped_low = torch.tensor([False, True, True])
    clipped_high = torch.tensor([True, False, True])
    dual_clipped = torch.tensor([False, False, True])
    weight = torch.tensor([2.0, 0.0, 9.0])
    truncated = torch.tensor([True, False, True])
    masked = torch.tensor([False, True, True])
    logprob_gap = torch.tensor([0.3, 0.7, 9.0])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("loss_sum", -1.0),
        ("tokens", 2.0),
        ("entropy_sum", 0.75),
        ("ppo_kl_sum", -0.5),
        ("kl_sum", 0.1),
        ("ratio_sum", 2.5),
        ("clipped_low", 1.0),
        ("clipped_high", 1.0),
        ("dual_clipped", 0.0),
        ("tis_weight_sum", 2.0),
        ("tis_truncated", 1.0),
        ("importance_masked", 1.0),
        ("logprob_gap_sum", 1.0),
        ("logprob_gap_max", 0.7),
    ],
)
def test_what_each_one_is(name: str, wanted: float) -> None:
    metric = BY_NAME[name]
    values = metric.value(Terms()).double()[Terms.counted]
    reduced = values.max() if metric.reduction == "max" else values.sum()
    assert float(reduced) == pytest.approx(wanted)


def test_the_table_above_is_complete() -> None:
    marks = test_what_each_one_is.pytestmark
    assert [name for name, _ in marks[0].args[1]] == list(BY_NAME)


def test_the_table_is_read_without_torch() -> None:
    program = "import sys; import passk_fast.kernels.metrics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
