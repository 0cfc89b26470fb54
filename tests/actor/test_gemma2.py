"""Gemma-2 in the actor: logits and gradients are those of transformers' eager model."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from passk_fast.actor.model import layer_scores, uses_transformer_engine
from passk_fast.kernels import PolicyLoss
from tests.actor.test_losses import Answer, assert_close
from tests.actor.workers import make_sequences, model_shape, run_config
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

L, W = "tests.actor.loss_workers", "tests.actor.workers"
LOSS = PolicyLoss(objective="cispo", clip_low=0.1, clip_high=0.15)


@pytest.fixture(scope="module")
def wanted(one_rank: RankPool, folders: dict[str, str]) -> Answer:
    """The reference's loss and gradients, float64."""
    found: Answer = one_rank.run(f"{L}:reference", folders["gemma2"], LOSS)[0]
    return found


def test_logits(one_rank: RankPool, folders: dict[str, str]) -> None:
    (gap,) = one_rank.run(f"{W}:logits_gap", "gemma2", folders["gemma2"], {})
    assert gap <= 1e-4


def test_the_windows_and_caps_of_these_tests_matter() -> None:
    """Sequences are longer than the window, and layers of both kinds are there."""
    shape = model_shape("gemma2")
    scores = [layer_scores(shape, layer) for layer in range(shape.num_layers)]
    assert [s.window for s in scores] == [9, 0, 9, 0]
    assert {s.soft_cap for s in scores} == {2.0}
    assert {s.scale for s in scores} == {0.25}
    assert max(len(s.token_ids) for s in make_sequences()) > 40


@pytest.mark.parametrize(
    "mesh", [{"tensor": 2}, {"pipeline": 2}, {"pipeline": 2, "virtual_pipeline": 2}], ids=str
)
def test_logits_on_meshes(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    gaps = two_ranks.run(f"{W}:logits_gap", "gemma2", folders["gemma2"], mesh)
    assert 0.0 < max(gaps) <= 1e-4


@pytest.mark.parametrize(
    ("tokens", "share", "head"),
    [(4096, False, "unfused"), (100, True, "unfused"), (100, True, "fused")],
)
def test_gradients(
    one_rank: RankPool,
    folders: dict[str, str],
    wanted: Answer,
    tokens: int,
    share: bool,
    head: str,
) -> None:
    work = f"{L}:gradients", "gemma2", folders["gemma2"]
    assert_close(one_rank.run(*work, {}, tokens, share, head, LOSS)[0], wanted)


@pytest.mark.parametrize(
    ("mesh", "share", "head"),
    [
        pytest.param({"tensor": 2}, False, "unfused", id="tp2"),
        pytest.param({"tensor": 2}, True, "fused", id="tp2-fused-shared"),
        pytest.param({"pipeline": 2}, False, "fused", id="pp2-fused"),
        pytest.param({"context": 2}, False, "unfused", id="cp2"),
        pytest.param({"context": 2}, True, "fused", id="cp2-fused-shared"),
    ],
)
def test_gradients_on_meshes(
    two_ranks: RankPool,
    folders: dict[str, str],
    wanted: Answer,
    mesh: dict[str, Any],
    share: bool,
    head: str,
) -> None:
    work = f"{L}:gradients", "gemma2", folders["gemma2"]
    assert_close(two_ranks.run(*work, mesh, 120, share, head, LOSS)[0], wanted)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_does_not_change_gradients(
    one_rank: RankPool, folders: dict[str, str], wanted: Answer, recompute: str
) -> None:
    work = f"{L}:gradients", "gemma2", folders["gemma2"]
    got = one_rank.run(*work, {"recompute": recompute}, 200, False, "unfused", LOSS)[0]
    assert_close(got, wanted)


def test_the_embeddings_scale_is_rounded_to_the_weights_type(one_rank: RankPool) -> None:
    """bfloat16 rounds 72 ** 0.5 = 8.4853 to 8.5, as transformers does."""
    (gap,) = one_rank.run("tests.actor.gemma2_workers:embedding_gap", 72)
    assert gap == 0.0


def test_a_bfloat16_step(one_rank: RankPool, folders: dict[str, str]) -> None:
    (seen,) = one_rank.run(f"{W}:bfloat16_step", "gemma2", folders["gemma2"], {})
    assert 0 < seen["worst_error"] < 0.1  # bfloat16 keeps eight bits; two more norms a layer
    assert seen["least_move"] > 1e-3  # lr is 1e-2


def test_transformer_engine_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    config = run_config({}, 4096)
    assert uses_transformer_engine(config, model_shape("qwen3"), "cuda")
    assert not uses_transformer_engine(config, model_shape("gemma2"), "cuda")
