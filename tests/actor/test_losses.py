"""Options of the loss in the actor, against a plain float64 loss on transformers' model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from passk_fast.kernels import PolicyLoss
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

L = "tests.actor.loss_workers"
LOSSES = {
    "cispo": PolicyLoss(objective="cispo", clip_low=0.1, clip_high=0.15),
    "reinforce": PolicyLoss(objective="reinforce"),
    "gspo": PolicyLoss(ratio="sequence", clip_low=0.01, clip_high=0.02),
    "importance-bounds": PolicyLoss(importance_min=0.85, importance_max=1.2, tis_clip=1.1),
    "together": PolicyLoss(
        objective="cispo",
        ratio="sequence",
        clip_low=0.01,
        clip_high=0.02,
        tis_clip=1.1,
        importance_min=0.85,
    ),
}
ONE_RANK = [
    pytest.param(4096, False, "unfused", id="unfused"),
    pytest.param(100, True, "unfused", id="unfused-many-shared"),
    pytest.param(4096, False, "fused", id="fused"),
    pytest.param(100, True, "fused", id="fused-many-shared"),
]
TWO_RANKS = [
    pytest.param({}, False, "unfused", id="dp2-unfused"),
    pytest.param({}, True, "fused", id="dp2-fused-shared"),
    pytest.param({"tensor": 2}, False, "unfused", id="tp2-unfused"),
    pytest.param({"tensor": 2}, True, "fused", id="tp2-fused-shared"),
    pytest.param({"pipeline": 2}, False, "fused", id="pp2-fused"),
]
Answer = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def wanted(one_rank: RankPool, folders: dict[str, str]) -> dict[str, Answer]:
    """The reference's loss and gradients."""
    return {
        name: one_rank.run(f"{L}:reference", folders["qwen3"], loss)[0]
        for name, loss in LOSSES.items()
    }


def assert_close(got: Answer, want: Answer) -> None:
    """Loss to 1e-5, gradients to 1e-4 of each tensor's norm: float32 layers against float64."""
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        assert gradient.norm() > 0, name
        error = float((got[1][name].double() - gradient).norm() / gradient.norm())
        assert error <= 1e-4, f"{name}: {error:.2e}"


def test_every_option_changes_the_gradient(wanted: dict[str, Answer]) -> None:
    name = "model.embed_tokens.weight"
    answers = [answer[1][name] for answer in wanted.values()]
    for i, first in enumerate(answers):
        for second in answers[:i]:
            assert float((first - second).norm() / first.norm()) > 1e-2


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("tokens", "share", "head"), ONE_RANK)
def test_one_rank(
    one_rank: RankPool,
    folders: dict[str, str],
    wanted: dict[str, Answer],
    name: str,
    tokens: int,
    share: bool,
    head: str,
) -> None:
    work = "qwen3", folders["qwen3"], {}, tokens, share, head, LOSSES[name]
    assert_close(one_rank.run(f"{L}:gradients", *work)[0], wanted[name])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("mesh", "share", "head"), TWO_RANKS)
def test_two_ranks(
    two_ranks: RankPool,
    folders: dict[str, str],
    wanted: dict[str, Answer],
    name: str,
    mesh: dict[str, Any],
    share: bool,
    head: str,
) -> None:
    work = "qwen3", folders["qwen3"], mesh, 120, share, head, LOSSES[name]
    assert_close(two_ranks.run(f"{L}:gradients", *work)[0], wanted[name])
