"""The kernels' correctness bars on a GPU; the same checks on small shapes on the CPU's torch path.

    python -m pytest tests/gpu -m gpu

Inputs are bfloat16 and the answers float64 from those exact inputs. Bars: log-prob 5e-6, entropy
1e-4, dX and dW 4e-3 relative Frobenius, dlogits 2^-8 |ref| + 2^-24 |c| / tau, rows without gradient
exactly 0, two runs bitwise equal. Tensor parallelism over gloo: tests/kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import passk_fast.kernels as kernels
from passk_fast.advantage.table import table
from passk_fast.kernels import LossRows, OutputHead, OutputLogits, informative_rows, reference
from tests.kernels import cases

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])
both = pytest.mark.parametrize("device", ["cpu", GPU])
GEMMS = ("fused", "blas")

SHAPES = {
    "cpu": {"rows": 160, "hidden": 64, "padded": 264, "vocab": 257},
    "cuda": {"rows": 384, "hidden": 1024, "padded": 32768, "vocab": 32749},
}


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def problem(device: str, options: dict[str, Any] | None = None, **shapes: int) -> dict[str, Any]:
    """A problem of cases.py in bfloat16 on the device."""
    data = cases.with_options(cases.problem(**{**SHAPES[device], **shapes}), options or {})
    return moved(data, device)


def moved(data: dict[str, Any], device: str) -> dict[str, Any]:
    """Tensors on the device, hidden states and weight in bfloat16."""
    out = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    return {k: v.bfloat16() if k in ("hidden", "weight") else v for k, v in out.items()}


def double(data: dict[str, Any]) -> dict[str, Any]:
    """The same inputs in float64, for the reference."""
    return {k: v.double() if k in ("hidden", "weight") else v for k, v in data.items()}


def assert_bars(
    got: dict[str, Any], want: dict[str, Any], device: str, *, loose: float = 1, dx: float = 4e-3
) -> None:
    """Loss from log-probs good to 5e-6, and the gradients' bars."""
    assert got["report"].backend == ("triton" if device == "cuda" else "torch")
    size = max(1.0, abs(float(want["loss"])))
    assert abs(float(got["loss"]) - float(want["loss"])) <= 2e-5 * loose * size
    for name, bar in (("hidden", dx), ("weight", 4e-3)):
        assert cases.frobenius(got[name], want[name]) <= bar, name
        assert torch.isfinite(got[name]).all(), name


@both
@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("name", cases.FAMILY)
def test_hidden_loss_family(device: str, name: str, gemm: str) -> None:
    data = problem(device, cases.FAMILY[name])
    gemm = "auto" if data.get("soft_cap") else gemm  # "fused" is refused
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "first_gemm": gemm}, upstream=2.0)
    want = cases.from_hidden(reference.linear_policy_loss, double(data), upstream=2.0)
    assert_bars(got, want, device)
    assert float(want["hidden"].norm()) > 1e-3  # something was compared
    assert not got["weight"][data["vocab"] :].any()


@both
@pytest.mark.parametrize("name", cases.FAMILY)
def test_logits_loss_family(device: str, name: str) -> None:
    data = problem(device, cases.FAMILY[name])
    data["logits"] = data["hidden"] @ data["weight"].T
    want = cases.from_logits(reference.policy_loss, {**data, "logits": data["logits"].double()})
    for inplace in (False, True):
        got = cases.from_logits(kernels.policy_loss, data, inplace=inplace)
        size = max(1.0, abs(float(want["loss"])))
        assert abs(float(got["loss"]) - float(want["loss"])) <= 1e-6 * size
        exact = want["logits"]
        # |c| / tau of a row is its gradient's largest entry over 1 - p_y, and at least it.
        slope = exact.abs().sum(dim=1, keepdim=True)
        bound = 2**-8 * exact.abs() + 2**-20 * slope
        assert ((got["logits"].double() - exact).abs() <= bound).all()
        assert not got["logits"][exact.abs().amax(dim=1) == 0].any()


@both
@pytest.mark.parametrize("gemm", GEMMS)
def test_logprob_and_entropy(device: str, gemm: str) -> None:
    data = problem(device)
    logp, entropy = cases.logprobs(kernels.token_logprob, {**data, "first_gemm": gemm})
    want = cases.logprobs(reference.token_logprob, double(data))
    assert float((logp - want[0]).abs().max()) <= 5e-6
    assert float((entropy - want[1]).abs().max()) <= 1e-4


ODD = [(1, 64, 256, 256), (129, 72, 1031, 1031), (257, 200, 520, 511), (64, 1024, 2048, 9)]


@both
@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize(("rows", "hidden", "padded", "vocab"), ODD)
def test_odd_shapes(
    device: str, rows: int, hidden: int, padded: int, vocab: int, gemm: str
) -> None:
    data = problem(device, rows=rows, hidden=hidden, padded=padded, vocab=vocab)
    data["mask"][-1] = True  # its target is the last column
    data["advantages"][-1] = 1.0
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "first_gemm": gemm})
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    assert_bars(got, want, device)


@both
@pytest.mark.parametrize("change", ["no advantage", "all masked", "ratio 100", "logits -200"])
def test_edge_cases(device: str, change: str) -> None:
    data = cases.problem(**SHAPES[device])
    cases.changed(data, change)
    data = moved(data, device)
    got = cases.from_hidden(kernels.linear_policy_loss, data)
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    if change == "logits -200":
        # A row of dlogits sums to 0, which its bfloat16 entries do to 2^-9 each: the part that all
        # columns of this weight share, 200 times larger than the rest, comes through in dX.
        assert_bars(got, want, device, loose=20, dx=4e-2)
    else:
        assert_bars(got, want, device)
    if change == "ratio 100":
        assert float(got["metrics"]["softmax_fallback_rows"]) == 3
    if change in ("no advantage", "all masked"):
        assert not got["weight"].any()
        assert not got["hidden"].any()


@both
def test_one_informative_row_among_many_others(device: str) -> None:
    data = problem(device)
    data["advantages"] = torch.zeros_like(data["advantages"])
    data["advantages"][7], data["mask"][7] = -1.0, True
    data["old_logp"] = None
    index = informative_rows(data["mask"].cpu(), data["advantages"].cpu())
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    for more in ({}, {"row_index": index}):
        got = cases.from_hidden(kernels.linear_policy_loss, {**data, **more})
        assert_bars(got, want, device)
        rest = torch.arange(len(data["mask"]), device=device) != 7
        assert not got["hidden"][rest].any()
        assert got["hidden"][7].any()


@both
def test_runs_repeat_bitwise_and_rows_do_not_know_their_place(device: str) -> None:
    data = {**problem(device), "keep_rows": True, "memory_gib": 1e-4 if device == "cpu" else 2.6}
    one, two = (cases.from_hidden(kernels.linear_policy_loss, data) for _ in range(2))
    for name in ("loss", "hidden", "weight"):
        assert torch.equal(one[name], two[name])
    order = torch.randperm(len(data["mask"]), generator=torch.Generator().manual_seed(1)).to(device)
    rows = ("hidden", "targets", "old_logp", "advantages", "mask", "rollout_logp")
    rows += ("reference_logp", "sequence_index")
    three = cases.from_hidden(
        kernels.linear_policy_loss, {k: v[order] if k in rows else v for k, v in data.items()}
    )
    # A CPU rounds a row of a matrix product by place and threads: there the bar of log-probs
    # holds.
    torch.testing.assert_close(
        three["report"].logp, one["report"].logp[order],
        rtol=0, atol=5e-6 if device == "cpu" else 0, equal_nan=True,
    )  # fmt: skip


@both
def test_main_grad_takes_the_weight_gradient(device: str) -> None:
    data = problem(device)
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    buffer = torch.ones_like(data["weight"], dtype=torch.float32)
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "main_grad": buffer})
    assert not got["weight"].any()
    assert cases.frobenius(buffer - 1, want["weight"]) <= 4e-3


@both
def test_small_chunks_change_nothing_but_order(device: str) -> None:
    data = problem(device)
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    rows = 4 if device == "cpu" else 128
    gib = 2.2 * rows * data["weight"].shape[0] * 2 / 2**30
    got = cases.from_hidden(kernels.linear_policy_loss, {**data, "memory_gib": gib})
    assert_bars(got, want, device)


@both
@pytest.mark.parametrize(("n", "k"), [(2, 1), (16, 8), (33, 4), (200, 64)])
def test_group_advantage(device: str, n: int, k: int) -> None:
    correct = torch.rand(500, n, generator=torch.Generator().manual_seed(n)) < 0.3
    lookup = torch.tensor(table("passk", n, k))
    want, alive = reference.group_advantage(correct, lookup)
    advantage, informative = kernels.group_advantage(correct.to(device), lookup.to(device))
    torch.testing.assert_close(advantage.cpu().double(), want, rtol=1e-7, atol=0)
    assert torch.equal(informative.cpu(), alive)


@both
def test_more_elements_than_32_bits_count(device: str) -> None:
    """K2 where T V > 2^31 (on the GPU), checked on rows from both ends."""
    rows, vocab = (20_000, 151_936) if device == "cuda" else (300, 1000)
    rng = torch.Generator(device).manual_seed(0)
    z = torch.empty(rows, vocab, dtype=torch.bfloat16, device=device).normal_(generator=rng)
    targets = torch.randint(0, vocab, (rows,), device=device, generator=rng)
    targets[-1] = vocab - 1
    advantages = torch.randn(rows, device=device, generator=rng)
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    ends = torch.cat([torch.arange(5), torch.arange(rows - 5, rows)]).to(device)
    kept = z[ends].double().requires_grad_()
    data = LossRows(targets=targets, advantages=advantages, mask=mask, denominator=9.0)
    loss, _ = reference.policy_loss(OutputLogits(logits=kept), data.at(ends, mask[ends]))
    loss.backward()
    z.requires_grad_()
    loss, _ = kernels.policy_loss(OutputLogits(logits=z), data, inplace=True)
    loss.backward()
    assert z.grad is not None
    assert kept.grad is not None
    assert cases.frobenius(z.grad[ends], kept.grad) <= 4e-3


@both
def test_more_rows_than_a_grid_dimension(device: str) -> None:
    rows = 70_000 if device == "cuda" else 300
    data = problem(device, rows=rows, hidden=64, padded=512, vocab=509)
    got = cases.from_hidden(kernels.linear_policy_loss, data)
    want = cases.from_hidden(reference.linear_policy_loss, double(data))
    assert_bars(got, want, device)


@pytest.mark.gpu
@NO_GPU
def test_temporary_memory_is_bounded() -> None:
    """T = 32,768, V = 151,936, H = 5120: 2.6 GiB beside inputs, gradients and dW in float32."""
    rows, hidden, vocab = 32_768, 5120, 151_936
    x = torch.randn(rows, hidden, device="cuda").bfloat16().requires_grad_()
    w = torch.empty(vocab, hidden, dtype=torch.bfloat16, device="cuda").normal_(std=0.05)
    w.requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device="cuda")
    ones = torch.ones(rows, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss, _ = kernels.linear_policy_loss(
        OutputHead(hidden=x, weight=w),
        LossRows(targets=targets, advantages=ones, mask=ones.bool(), denominator=float(rows)),
    )
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    grads = rows * hidden * 2 + vocab * hidden * 4
    assert extra - grads <= 2.6 * 2**30 + 64 * 2**20  # vectors of T and the allocator's rounding
    assert torch.isfinite(loss)


@pytest.mark.gpu
@NO_GPU
def test_nothing_waits_for_the_device() -> None:
    """torch refuses every synchronising call; one event is waited for, behind the last GEMM."""
    data = problem("cuda")
    data["row_index"] = informative_rows(data["mask"].cpu(), data["advantages"].cpu())
    cases.from_hidden(kernels.linear_policy_loss, data)  # compiles
    x, _ = (data[name].requires_grad_() for name in ("hidden", "weight"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = cases.call_hidden(kernels.linear_policy_loss, data)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
