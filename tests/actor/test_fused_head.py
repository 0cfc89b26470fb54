"""The loss from hidden states gives the loss and gradients of the loss from logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.actor.test_actor import assert_same
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

F = "tests.actor.fused_workers"


@pytest.fixture(scope="module")
def wanted(
    one_rank: RankPool, folders: dict[str, str]
) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients from logits, TP = 1; qwen3 has tied embeddings, qwen2 has not."""
    return {
        kind: one_rank.run("tests.actor.workers:gradients", kind, folders[kind], {}, 4096)[0]
        for kind in ("qwen3", "qwen2")
    }


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_one_rank(
    one_rank: RankPool, folders: dict[str, str], wanted: dict[str, Any], kind: str
) -> None:
    got = one_rank.run(f"{F}:gradients", kind, folders[kind], {}, 120)[0]
    assert_same(got, wanted[kind])


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}, {"context": 2}, {}], ids=str)
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_meshes(
    two_ranks: RankPool,
    folders: dict[str, str],
    wanted: dict[str, Any],
    kind: str,
    mesh: dict[str, Any],
) -> None:
    got = two_ranks.run(f"{F}:gradients", kind, folders[kind], mesh, 120)[0]
    assert_same(got, wanted[kind])


def test_shared_prompts_and_dead_sequences(one_rank: RankPool, folders: dict[str, str]) -> None:
    arguments = ("qwen3", folders["qwen3"], {}, 4096, True, "kept")
    want = one_rank.run("tests.actor.workers:gradients", *arguments)[0]
    got = one_rank.run(f"{F}:gradients", *arguments)[0]
    assert_same(got, want)


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}], ids=str)
def test_recomputed_logprobs_are_those_of_training(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    gaps = two_ranks.run(f"{F}:same_logprobs", "qwen3", folders["qwen3"], mesh)
    assert max(gaps) <= 1e-4


def test_cross_entropy(two_ranks: RankPool, folders: dict[str, str]) -> None:
    results = two_ranks.run(f"{F}:compare_heads", folders["qwen2"], {"tensor": 2}, supervised=True)
    result = results[0]
    assert result["norm"] > 0
    assert result["gradient"] <= 1e-5
    assert result["loss"] <= 1e-6


def test_bfloat16(one_rank: RankPool, folders: dict[str, str]) -> None:
    """bfloat16 layers differ more than this between any two orders of summation."""
    result = one_rank.run(f"{F}:compare_heads", folders["qwen2"], {}, "bfloat16")[0]
    assert result["norm"] > 0
    assert result["gradient"] <= 3e-2
    assert result["loss"] <= 1e-3


@pytest.fixture(scope="module")
def interpreter() -> Iterator[RankPool]:
    with RankPool(2, env={"TRITON_INTERPRET": "1"}) as pool:
        yield pool


@pytest.mark.slow
def test_interpreted_kernels(
    interpreter: RankPool, folders: dict[str, str], wanted: dict[str, Any]
) -> None:
    pytest.importorskip("triton")
    got = interpreter.run(f"{F}:gradients", "qwen3", folders["qwen3"], {"tensor": 2}, 120)[0]
    assert_same(got, wanted["qwen3"])
