"""K1, K2 and K3 on the torch path against float64: the loss family, edge cases, compaction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import passk_fast.kernels as kernels
from passk_fast.kernels import OutputHead, PolicyLoss, engines, informative_rows, reference
from passk_fast.kernels.from_hidden import chunk_rows
from passk_fast.kernels.inputs import DEFAULT_MEMORY_GIB
from passk_fast.kernels.shard import Shard
from tests.kernels import cases

SHAPES = {"rows": 33, "hidden": 24, "padded": 104, "vocab": 97}


@pytest.fixture(autouse=True)
def _torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.mark.parametrize("name", cases.FAMILY)
def test_loss_family_equals_float64(name: str) -> None:
    want = cases.float64_answers(SHAPES, cases.FAMILY[name])
    data = cases.with_options(cases.problem(**SHAPES), cases.FAMILY[name])
    got = cases.from_hidden(kernels.linear_policy_loss, data)
    assert got["report"].backend == "torch"
    slow = data["mask"].sum() if "entropy" in name else 0
    assert got["metrics"]["softmax_fallback_rows"] == slow
    cases.assert_hidden(got, want["hidden"])
    again = cases.from_logits(kernels.policy_loss, data)
    assert cases.frobenius(again["logits"], want["logits"]["logits"]) <= 2e-6
    cases.assert_metrics(again["metrics"], want["logits"]["metrics"])
    assert float(want["hidden"]["hidden"].norm()) > 1e-3  # something was compared


@pytest.mark.parametrize("name", ["clip", "k2", "gspo", "entropy-bonus"])
@pytest.mark.parametrize("memory_gib", [1.6e-6, 1.2e-5])
def test_chunks_do_not_change_the_result(name: str, memory_gib: float) -> None:
    data = cases.with_options(cases.problem(**SHAPES), cases.FAMILY[name])
    data = {key: v.double() if key in ("hidden", "weight") else v for key, v in data.items()}
    whole = cases.from_hidden(kernels.linear_policy_loss, data)
    parts = cases.from_hidden(kernels.linear_policy_loss, {**data, "memory_gib": memory_gib})
    cases.assert_hidden(parts, whole, tolerance=1e-13)


def test_chunk_rows_follow_from_memory() -> None:
    weight = torch.empty(151_936, 5120, dtype=torch.bfloat16, device="meta")
    alone = Shard(None, 0, 151_936, 151_936, 0, 1)
    fused = engines.TritonEngine("fused", False)
    assert chunk_rows(fused, weight, alone, DEFAULT_MEMORY_GIB) == 8192
    eight = Shard(None, 0, 18_992, 151_936, 0, 8)
    rows = chunk_rows(fused, weight[:18_992], eight, DEFAULT_MEMORY_GIB)
    assert 2 * rows * fused.row_bytes(18_992, 5120, 2) <= DEFAULT_MEMORY_GIB * 2**30
    with pytest.raises(ValueError, match="memory_gib"):
        chunk_rows(fused, weight, alone, 1e-6)


@pytest.mark.parametrize("change", ["no advantage", "all masked", "ratio 100", "logits -200"])
def test_edge_cases(change: str) -> None:
    want = cases.float64_answers(SHAPES, {}, change)
    data = cases.problem(**SHAPES)
    cases.changed(data, change)
    got = cases.from_hidden(kernels.linear_policy_loss, data)
    tolerance = 5e-5 if change == "logits -200" else 3e-6  # float32 logits of that size: 1.5e-5
    cases.assert_hidden(got, want["hidden"], tolerance)
    assert float(got["metrics"]["softmax_fallback_rows"]) == (3 if change == "ratio 100" else 0)


def test_rows_without_gradient_are_in_no_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cases.problem(**SHAPES)
    idle = ~data["mask"] | (data["advantages"] == 0)
    data["hidden"][idle] = torch.nan  # a row that entered a product would be seen
    seen: list[tuple[int, ...]] = []
    plain = engines.mm_float32

    def recorded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((a.shape[0], a.shape[1]))
        return plain(a, b)

    monkeypatch.setattr(engines, "mm_float32", recorded)
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "keep_rows": True})
    logp = got["report"].logp
    assert torch.equal(torch.isnan(logp), idle)
    assert torch.equal(got["report"].counted, ~idle)
    assert not got["hidden"][idle].any()
    ratio = (logp - data["old_logp"]).exp()
    up, down = data["advantages"] > 0, data["advantages"] < 0
    clipped = ~idle & ((up & (ratio > 1.28)) | (down & (ratio < 0.8)))
    assert clipped.any()
    assert not got["hidden"][clipped].any()
    left = int((~idle & ~clipped).sum())
    *first, weight_grad, hidden_grad = seen
    assert sum(rows for rows, _ in first) == int((~idle).sum())
    assert weight_grad == (SHAPES["vocab"], left)
    assert hidden_grad == (left, SHAPES["vocab"])


def test_informative_rows_given_are_those_found() -> None:
    data = cases.problem(**SHAPES)
    rows = informative_rows(data["mask"], data["advantages"])
    assert torch.equal(rows, (data["mask"] & (data["advantages"] != 0)).nonzero()[:, 0])
    found = cases.from_hidden(kernels.linear_policy_loss, data)
    given = cases.from_hidden(kernels.linear_policy_loss, {**data, "row_index": rows})
    for name in ("loss", "hidden", "weight"):
        assert torch.equal(found[name], given[name])


def test_filter_error_is_within_its_bound() -> None:
    data = cases.problem(**SHAPES)
    data = {key: v.double() if key in ("hidden", "weight") else v for key, v in data.items()}
    whole = cases.from_hidden(kernels.linear_policy_loss, {**data, "keep_rows": True})
    eps = 0.02
    some = cases.from_hidden(kernels.linear_policy_loss, {**data, "filter_eps": eps})
    assert some["loss"] == whole["loss"]
    dropped = (some["hidden"] == 0).all(dim=1) & (whole["hidden"] != 0).any(dim=1)
    assert dropped.sum() == some["metrics"]["filtered_rows"] > 0
    kept = ~dropped
    torch.testing.assert_close(some["hidden"][kept], whole["hidden"][kept], rtol=0, atol=1e-13)
    # max|dz| <= eps and sum|dz| <= 2 eps, so |dX row| <= 2 eps max|w_j|.
    bound = 2 * eps * data["weight"][: data["vocab"]].norm(dim=1).max()
    assert whole["hidden"][dropped].norm(dim=1).max() <= bound


def test_row_permutation_permutes_row_results() -> None:
    data = cases.problem(**SHAPES)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    moved = {
        key: v[order] if isinstance(v, torch.Tensor) and key != "weight" else v
        for key, v in data.items()
    }
    one = cases.from_hidden(kernels.linear_policy_loss, {**data, "keep_rows": True})
    two = cases.from_hidden(kernels.linear_policy_loss, {**moved, "keep_rows": True})
    torch.testing.assert_close(
        two["report"].logp, one["report"].logp[order], rtol=0, atol=1e-6, equal_nan=True
    )
    torch.testing.assert_close(two["hidden"], one["hidden"][order], rtol=1e-5, atol=1e-7)


def test_two_runs_are_bitwise_equal_and_upstream_scales() -> None:
    data = cases.problem(**SHAPES)
    one = cases.from_hidden(kernels.linear_policy_loss, data)
    two = cases.from_hidden(kernels.linear_policy_loss, data)
    three = cases.from_hidden(kernels.linear_policy_loss, data, upstream=4.0)
    for name in ("loss", "hidden", "weight"):
        assert torch.equal(one[name], two[name])
    for name in ("hidden", "weight"):
        assert torch.equal(three[name], 4 * one[name])


def test_main_grad_takes_the_weight_gradient() -> None:
    data = cases.problem(**SHAPES)
    want = cases.from_hidden(kernels.linear_policy_loss, data)
    buffer = torch.ones_like(data["weight"])
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "main_grad": buffer})
    assert not got["weight"].any()
    torch.testing.assert_close(buffer - 1, want["weight"], rtol=0, atol=1e-6)
    assert torch.equal(got["hidden"], want["hidden"])


def test_second_backward_is_refused() -> None:
    data = cases.problem(**SHAPES)
    data["hidden"].requires_grad_()
    loss, _ = cases.call_hidden(kernels.linear_policy_loss, data)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_token_logprob_and_no_grad() -> None:
    data = cases.problem(**SHAPES)
    logp, entropy = cases.logprobs(kernels.token_logprob, data)
    want = cases.logprobs(reference.token_logprob, data)
    torch.testing.assert_close(logp.double(), want[0], rtol=0, atol=5e-6)
    torch.testing.assert_close(entropy.double(), want[1], rtol=0, atol=1e-4)
    data["weight"] *= 60  # log-probs below -80 need the online maximum
    logp, entropy = cases.logprobs(kernels.token_logprob, data)
    want = cases.logprobs(reference.token_logprob, data)
    assert float(want[0].min()) < -80
    # float32 logits of some hundreds carry errors of about 2e-4.
    torch.testing.assert_close(logp.double(), want[0], rtol=0, atol=1e-3)


def test_bfloat16_bars() -> None:
    """The bars of the design for bfloat16 inputs: dX and dW to 4e-3, log-prob to 5e-6."""
    data = cases.problem(rows=48, hidden=64, padded=512, vocab=509)
    data = {k: v.bfloat16() if k in ("hidden", "weight") else v for k, v in data.items()}
    want = cases.from_hidden(reference.linear_policy_loss, data)
    head = OutputHead(hidden=data["hidden"], weight=data["weight"], vocab=509)
    exact, _ = reference.token_logprob(head, data["targets"])
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "keep_rows": True})
    logp = got["report"].logp
    known = ~torch.isnan(logp)
    assert float((logp - exact)[known].abs().max()) <= 5e-6
    for name in ("hidden", "weight"):
        assert cases.frobenius(got[name], want[name]) <= 4e-3


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batch_and_one_row(rows: int) -> None:
    data: dict[str, Any] = cases.problem(rows=1)
    data["mask"][:] = True
    data["advantages"][:] = 1.0
    data = {
        key: v[:rows] if isinstance(v, torch.Tensor) and key != "weight" else v
        for key, v in data.items()
    }
    data["loss"] = PolicyLoss()
    got = cases.from_hidden(kernels.linear_policy_loss, data)
    want = cases.from_hidden(reference.linear_policy_loss, data)
    cases.assert_hidden(got, want)
