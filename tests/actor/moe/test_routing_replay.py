"""Routing replay in the actor: whose experts, which weights, what is counted."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from passk_fast.data.types import Sequence
from tests.actor.test_actor import assert_same
from tests.actor.workers import make_sequences
from tests.moe_model import ReferenceRouter
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.actor.moe.routing_workers"
LAYERS, EXPERTS, TOP_K = 4, 8, 2
MESHES = [
    pytest.param({"tensor": 2}, id="tp2-sp"),
    pytest.param({"pipeline": 2}, id="pp2"),
    pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-interleaved"),
    pytest.param({"expert": 2}, id="ep2"),
    pytest.param({"context": 2}, id="cp2"),
    pytest.param({"tensor": 2, "expert": 2, "recompute": "full"}, id="tp2-ep2-recompute"),
    pytest.param({"pipeline": 2, "recompute": "full"}, id="pp2-recompute"),
]


def own_experts(folder: str, sequences: SequenceOf[Sequence]) -> list[Sequence]:
    """With the experts that float64 chooses, in no order."""
    reference, rng = ReferenceRouter(folder), np.random.default_rng(0)
    out = []
    for s in sequences:
        experts, gap = reference.experts(s.token_ids[:-1])
        assert gap.min() > 1e-6, "too near a tie for float32: take another seed"
        out.append(replace(s, routed_experts=rng.permuted(experts, axis=2).astype(np.uint8)))
    return out


def other_experts(sequences: SequenceOf[Sequence]) -> list[Sequence]:
    """With random experts, the same wherever the tokens up to there are the same."""
    out = []
    for s in sequences:
        experts = np.empty((len(s.token_ids) - 1, LAYERS, TOP_K), np.uint8)
        for t in range(len(experts)):
            rng = random.Random(str(s.token_ids[: t + 1]))
            for layer in range(LAYERS):
                experts[t, layer] = rng.sample(range(EXPERTS), TOP_K)
        out.append(replace(s, routed_experts=experts))
    return out


def choices(sequences: SequenceOf[Sequence]) -> int:
    """Tokens with known experts, times layers."""
    return sum(s.routed_experts[..., 0].size for s in sequences if s.routed_experts is not None)


@pytest.fixture(scope="module")
def folder(folders: dict[str, str]) -> str:
    return folders["qwen3_moe"]


@pytest.fixture(scope="module")
def own(folder: str) -> list[Sequence]:
    return own_experts(folder, make_sequences())


@pytest.fixture(scope="module")
def other() -> list[Sequence]:
    return other_experts(make_sequences())


@pytest.fixture(scope="module")
def replayed(one_rank: RankPool, folder: str, other: list[Sequence]) -> Any:
    """(sums, gradients) of one rank, other experts, all sequences in one micro-batch."""
    return one_rank.run(f"{W}:gradients", folder, {}, 4096, other, "replay")[0]


def test_replaying_the_routers_own_choice_changes_no_bit(
    one_rank: RankPool, folder: str, own: list[Sequence]
) -> None:
    found = {
        mode: one_rank.run(f"{W}:gradients", folder, {}, 120, own, mode)[0]
        for mode in ("off", "measure", "replay")
    }
    sums, gradients = found["off"]
    assert "routing_known" not in sums
    for mode in ("measure", "replay"):
        other_sums, other_gradients = found[mode]
        assert other_sums["loss_sum"] == sums["loss_sum"]
        assert other_sums["routing_known"] == choices(own)
        assert other_sums["routing_differs"] == 0
        for name, tensor in gradients.items():
            assert torch.equal(other_gradients[name], tensor), name


def test_a_balancing_bias_counts_as_the_trainers_choice(
    one_rank: RankPool, folder: str, own: list[Sequence]
) -> None:
    """Sampling knows no bias: measuring shows what it changes, and changes nothing."""
    run = f"{W}:gradients", folder, {}, 120, own
    (_, gradients), (sums, measured) = (
        one_rank.run(*run, mode, bias=0.05)[0] for mode in ("off", "measure")
    )
    assert 0.05 < sums["routing_differs"] / choices(own) < 0.9
    for name, tensor in gradients.items():
        assert torch.equal(measured[name], tensor), name


def forced_reference(
    folder: str, sequences: SequenceOf[Sequence]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Cross-entropy / 100 and its gradients, in float64, from transformers' model whose routers are
    made to choose the sequences' experts."""
    model = ReferenceRouter(folder).model
    forced: dict[int, torch.Tensor] = {}

    def choose(layer: int, gate: Any, hidden: torch.Tensor) -> Any:
        logits = F.linear(hidden, gate.weight)
        weights = logits.softmax(-1).gather(1, forced[layer])
        return logits, weights / weights.sum(-1, keepdim=True), forced[layer]

    for i, layer in enumerate(model.model.layers):
        gate = layer.mlp.gate
        gate.forward = lambda hidden, i=i, gate=gate: choose(i, gate, hidden)
    total = 0.0
    for s in sequences:
        assert s.routed_experts is not None
        for i in range(LAYERS):
            forced[i] = torch.from_numpy(s.routed_experts[:, i].astype(np.int64))
        logp = model(torch.tensor([s.token_ids[:-1]])).logits[0].log_softmax(-1)
        targets = torch.tensor(s.token_ids[s.prompt_length :])
        loss = -logp[s.prompt_length - 1 :].gather(1, targets[:, None]).sum() / 100.0
        loss.backward()
        total += float(loss.detach())
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        grad = parameter.grad.float()
        stem, fused, kind = name.rpartition("experts.")
        for e in range(EXPERTS if fused else 0):
            if kind == "down_proj":
                gradients[f"{stem}experts.{e}.down_proj.weight"] = grad[e]
            else:
                gate, up = grad[e].chunk(2)
                gradients[f"{stem}experts.{e}.gate_proj.weight"] = gate
                gradients[f"{stem}experts.{e}.up_proj.weight"] = up
        if not fused:
            gradients[name] = grad
    return total, gradients


def test_other_experts_give_the_gradients_of_a_reference_made_to_use_them(
    one_rank: RankPool, folder: str, other: list[Sequence]
) -> None:
    found = one_rank.run(f"{W}:supervised_gradients", folder, other)[0]
    assert_same(found, forced_reference(folder, other))


def test_other_experts_are_other_and_are_counted(
    replayed: Any, one_rank: RankPool, folder: str, other: list[Sequence]
) -> None:
    sums, gradients = replayed
    assert sums["routing_known"] == choices(other)
    # two of eight at random are the router's own two in one of 28
    assert 0.93 < sums["routing_differs"] / sums["routing_known"] < 0.99
    plain = one_rank.run(f"{W}:gradients", folder, {}, 4096, other, "measure")[0][1]
    name = "model.layers.0.mlp.gate.weight"
    assert not torch.allclose(plain[name], gradients[name], rtol=0.1)


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_and_micro_batches_replay_alike(
    two_ranks: RankPool, folder: str, other: list[Sequence], replayed: Any, mesh: dict[str, Any]
) -> None:
    """Several micro-batches are in flight in a pipeline; each layer's recompute is its own."""
    sums, gradients = two_ranks.run(f"{W}:gradients", folder, mesh, 120, other, "replay")[0]
    assert_same((sums["loss_sum"], gradients), (replayed[0]["loss_sum"], replayed[1]))
    assert sums["routing_known"] == replayed[0]["routing_known"]
    assert sums["routing_differs"] == replayed[0]["routing_differs"]


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}], ids=["one-rank", "tp2"])
def test_shared_prompts_replay_alike(
    one_rank: RankPool,
    two_ranks: RankPool,
    folder: str,
    other: list[Sequence],
    replayed: Any,
    mesh: dict[str, Any],
) -> None:
    pool = two_ranks if mesh else one_rank
    sums, gradients = pool.run(f"{W}:gradients", folder, mesh, 120, other, "replay", True)[0]
    assert_same((sums["loss_sum"], gradients), (replayed[0]["loss_sum"], replayed[1]))
    assert sums["routing_known"] < replayed[0]["routing_known"]


@pytest.mark.parametrize("mesh", MESHES)
def test_every_choice_that_differs_is_counted(
    two_ranks: RankPool, folder: str, own: list[Sequence], mesh: dict[str, Any]
) -> None:
    """Some of the router's own sets are replaced by others; measuring leaves routing alone."""
    rng = random.Random(3)
    changed, expected = [], 0
    for s in own:
        assert s.routed_experts is not None
        experts = s.routed_experts.copy()
        for t in range(len(experts)):
            layer = rng.randrange(LAYERS)
            if rng.random() < 0.3:
                left = set(range(EXPERTS)) - {int(experts[t, layer, 0])}
                experts[t, layer, 0] = rng.choice(sorted(left - {int(experts[t, layer, 1])}))
                expected += 1
        changed.append(replace(s, routed_experts=experts))
    sums, _ = two_ranks.run(f"{W}:gradients", folder, mesh, 120, changed, "measure")[0]
    assert sums["routing_differs"] == expected > 50
    assert sums["routing_known"] == choices(own)


def test_log_probs_before_the_step_are_replayed_and_not_counted(
    one_rank: RankPool, folder: str, other: list[Sequence]
) -> None:
    (sums,) = one_rank.run(f"{W}:passes_without_gradient", folder, other)
    assert sums["ppo_kl_sum"] == pytest.approx(0.0, abs=1e-4)
    assert sums["routing_known"] == choices(other)


def test_a_dense_model_is_refused(one_rank: RankPool, folders: dict[str, str]) -> None:
    (text,) = one_rank.run(f"{W}:build_error", "qwen3", folders["qwen3"], "replay")
    assert text.startswith("algorithm.routing_replay = 'replay' has no effect: the model (qwen3)")
