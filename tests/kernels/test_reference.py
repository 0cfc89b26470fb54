"""Token log-prob and entropy against torch's log_softmax in float64, whole and in two shards."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from passk_fast.kernels import torch_logprob
from passk_fast.kernels.reference import token_logprob_from_logits

F64 = torch.float64


def plain(logits: torch.Tensor, targets: torch.Tensor, temperature: float, vocab: int) -> Any:
    """log_softmax by torch, float64, padding cut off."""
    log_prob = (logits[:, :vocab].double() / temperature).log_softmax(dim=-1)
    entropy = -(log_prob * log_prob.exp()).sum(dim=-1)
    return log_prob.gather(1, targets[:, None])[:, 0], entropy


def problem(rows: int, width: int, vocab: int, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Logits [rows, width], targets, and upstream gradients of logp and entropy, float64."""
    rng = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, width, dtype=F64, generator=rng)
    targets = torch.randint(0, vocab, (rows,), generator=rng)
    targets[0] = vocab - 1
    up = torch.randn(2, rows, dtype=F64, generator=rng)
    return logits, targets, up[0], up[1]


def gradient(outputs: Any, up: Any, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(outputs, logits, up)[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(("rows", "width", "vocab"), [(1, 1, 1), (7, 33, 33), (5, 64, 50)])
def test_values_and_gradients_match_log_softmax(
    rows: int, width: int, vocab: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_logprob, "CHUNK_ELEMENTS", 3 * width)  # several blocks of rows
    logits, targets, up_logp, up_entropy = problem(rows, width, vocab)
    logits.requires_grad_()
    got = token_logprob_from_logits(logits, targets, temperature=temperature, vocab=vocab)
    want = plain(logits, targets, temperature, vocab)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    mine = gradient(got, (up_logp, up_entropy), logits)
    torch.testing.assert_close(
        mine, gradient(want, (up_logp, up_entropy), logits), rtol=1e-10, atol=1e-12
    )
    assert not mine[:, vocab:].any()


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_soft_cap_is_tanh_under_autograd(cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_logprob, "CHUNK_ELEMENTS", 3 * 64)
    logits, targets, *up = problem(5, 64, 50)
    logits.requires_grad_()
    got = token_logprob_from_logits(logits, targets, temperature=0.6, vocab=50, soft_cap=cap)
    want = plain(cap * torch.tanh(logits / cap), targets, 0.6, 50)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    mine = gradient(got, up, logits)
    torch.testing.assert_close(mine, gradient(want, up, logits), rtol=1e-10, atol=1e-12)


def test_an_infinite_logit_under_a_soft_cap_is_the_cap() -> None:
    logits = torch.tensor([[torch.inf, -torch.inf, 0.0]], requires_grad=True)
    logp, _ = token_logprob_from_logits(logits, torch.tensor([0]), soft_cap=2.0)
    want = torch.tensor([[2.0, -2.0, 0.0]]).log_softmax(dim=1)[0, 0]
    torch.testing.assert_close(logp[0], want)
    logp.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("cap", [-1.0, float("nan"), float("inf")])
def test_bad_soft_cap_is_an_error(cap: float) -> None:
    with pytest.raises(ValueError, match="soft_cap must be 0"):
        token_logprob_from_logits(torch.zeros(2, 6), torch.zeros(2).long(), soft_cap=cap)


def test_gradcheck_of_each_output() -> None:
    logits, targets, _, _ = problem(4, 9, 7)
    logits.requires_grad_()

    def both(z: torch.Tensor) -> Any:
        return token_logprob_from_logits(z, targets, temperature=0.7, vocab=7)

    assert torch.autograd.gradcheck(both, (logits,))
    assert torch.autograd.gradcheck(lambda z: both(z)[0], (logits,))
    assert torch.autograd.gradcheck(lambda z: both(z)[1], (logits,))


@pytest.mark.parametrize(
    # Bars: fp32 5e-6 in logp; bf16 inputs are exact in float32, so the same bar holds for values.
    # A bf16 gradient is rounded once: half a unit in 8 bits.
    ("dtype", "gradient_rtol"),
    [(torch.float32, 1e-4), (torch.bfloat16, 2**-8)],
)
def test_low_precision_inputs(dtype: torch.dtype, gradient_rtol: float) -> None:
    logits, targets, up_logp, up_entropy = problem(16, 1000, 1000)
    low = logits.to(dtype).requires_grad_()
    exact = low.detach().double().requires_grad_()
    got, want = token_logprob_from_logits(low, targets), plain(exact, targets, 1.0, 1000)
    assert got[0].dtype == torch.float32
    assert (got[0] - want[0]).abs().max() <= 5e-6
    assert (got[1] - want[1]).abs().max() <= 1e-5
    mine = gradient(got, (up_logp.float(), up_entropy.float()), low)
    assert mine.dtype == dtype
    theirs = gradient(want, (up_logp, up_entropy), exact)
    torch.testing.assert_close(mine.double(), theirs, rtol=gradient_rtol, atol=1e-6)


@pytest.mark.parametrize("shift", [-200.0, -3e4, 3e4])
def test_far_logits(shift: float) -> None:
    logits, targets, _, _ = problem(6, 40, 40)
    got = token_logprob_from_logits((logits + shift).float(), targets)
    want = plain((logits + shift).float(), targets, 1.0, 40)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_padding_may_hold_anything() -> None:
    logits, targets, up, _ = problem(3, 12, 10)
    logits[:, 10:] = torch.tensor([torch.nan, torch.inf])
    logits.requires_grad_()
    logp, entropy = token_logprob_from_logits(logits, targets, vocab=10)
    assert logp.isfinite().all()
    assert entropy.isfinite().all()
    grad = gradient(logp, up, logits)
    assert grad.isfinite().all()
    assert not grad[:, 10:].any()


def test_banned_column_is_zero_probability() -> None:
    logits, _, up, up_entropy = problem(3, 8, 8)
    logits[:, 2] = -torch.inf
    targets = torch.tensor([0, 1, 3])
    logits.requires_grad_()
    logp, entropy = token_logprob_from_logits(logits, targets)
    kept = [0, 1, 3, 4, 5, 6, 7]
    short = logits.detach()[:, kept]
    want = plain(short, torch.tensor([0, 1, 2]), 1.0, 7)
    torch.testing.assert_close(logp, want[0])
    torch.testing.assert_close(entropy, want[1])
    assert gradient((logp, entropy), (up, up_entropy), logits).isfinite().all()


def test_row_without_upstream_gradient_is_exactly_zero_even_with_nan() -> None:
    logits, targets, up, _ = problem(4, 6, 6)
    logits[2] = torch.nan
    targets[2] = -100
    up[2] = 0.0
    logits.requires_grad_()
    logp, _ = token_logprob_from_logits(logits, targets)
    assert logp.isnan().tolist() == [False, False, True, False]
    grad = gradient(logp, up, logits)
    assert not grad[2].any()
    assert grad.isfinite().all()


def test_unknown_target_is_nan() -> None:
    logits = torch.zeros(3, 6)
    logp, _ = token_logprob_from_logits(logits, torch.tensor([0, 5, -1]), vocab=5)
    assert logp.isnan().tolist() == [False, True, True]


def test_only_three_vectors_are_kept() -> None:
    logits, targets, _, _ = problem(5, 32, 32)
    logits.requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        token_logprob_from_logits(logits, targets)
    extra = [t for t in kept if t.data_ptr() != logits.data_ptr()]
    assert sum(t.numel() for t in extra) == 4 * 5  # targets, max, ln S, entropy


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"temperature": 0.0}, "temperature"), ({"vocab": 7}, "vocab"), ({"vocab": 0}, "vocab")],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprob_from_logits(torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64), **kwargs)


def test_bad_shapes() -> None:
    with pytest.raises((ValueError, TypeError), match="targets"):
        token_logprob_from_logits(torch.zeros(2, 6), torch.zeros(3, dtype=torch.int64))


TP_CASES = [(6, 20, 20), (6, 20, 13), (6, 20, 9)]  # 9: the second rank holds padding alone


def shard_worker(rank: int, size: int, folder: str) -> None:
    """One tensor-parallel rank: its shard of each case, forward and backward, saved as tensors."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    results = []
    for rows, width, vocab in TP_CASES:
        logits, targets, up_logp, up_entropy = problem(rows, width, vocab)
        shard = logits.chunk(size, dim=1)[rank].clone().requires_grad_()
        outputs = token_logprob_from_logits(
            shard, targets, temperature=0.8, group=dist.group.WORLD, vocab=vocab
        )
        grad = gradient(outputs, (up_logp, up_entropy), shard)
        results.append([outputs[0].detach(), outputs[1].detach(), grad])
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_shards_equal_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=shard_worker, args=(rank, 2, str(tmp_path))) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for case, (rows, width, vocab) in enumerate(TP_CASES):
        logits, targets, up_logp, up_entropy = problem(rows, width, vocab)
        logits.requires_grad_()
        outputs = token_logprob_from_logits(logits, targets, temperature=0.8, vocab=vocab)
        grad = gradient(outputs, (up_logp, up_entropy), logits)
        for rank in ranks:
            torch.testing.assert_close(rank[case][0], outputs[0].detach(), rtol=0, atol=1e-13)
            torch.testing.assert_close(rank[case][1], outputs[1].detach(), rtol=0, atol=1e-13)
        sharded = torch.cat([rank[case][2] for rank in ranks], dim=1)
        torch.testing.assert_close(sharded, grad, rtol=0, atol=1e-13)
