"""The layout table against layouts written out by hand, for both sides."""

from __future__ import annotations

import pytest
import torch

from passk_fast.errors import ConfigError
from passk_fast.model.families import FAMILIES
from passk_fast.weights.layout import Spec
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
from passk_fast.weights.placement import Tensors, rollout_side, trainer_side
from tests.weights.shapes import full_weights, held, model_shape


def test_query_key_value_are_grouped_by_key_value_head() -> None:
    """Against a loop over heads: each key-value head follows its queries."""
    tensors = Tensors.of(model_shape("qwen2"))
    full = full_weights(tensors)
    side = trainer_side(tensors, TrainerMesh(world=2, tensor=2))
    for kind in ("weight", "bias"):
        parts = [full[f"model.layers.1.self_attn.{x}_proj.{kind}"] for x in "qkv"]
        q, k, v = (part.view(-1, 3, *part.shape[1:]) for part in parts)
        heads = [x for g in range(4) for x in (q[2 * g], q[2 * g + 1], k[g], v[g])]
        expected = torch.cat(heads).chunk(2)
        for rank in range(2):
            got = held(tensors, side, rank, full)
            name = f"decoder.layers.1.self_attention.linear_qkv.{kind}"
            torch.testing.assert_close(got[name], expected[rank].view(24, -1))


def test_each_rank_holds_its_rows_of_gate_then_its_rows_of_up() -> None:
    tensors = Tensors.of(model_shape("llama"))
    full = full_weights(tensors)
    side = trainer_side(tensors, TrainerMesh(world=2, tensor=2))
    engine = rollout_side(tensors, RolloutMesh(world=2, tensor=2))
    gate, up = (full[f"model.layers.0.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    for rank in range(2):
        mine = slice(4 * rank, 4 * rank + 4)
        expected = torch.cat((gate[mine], up[mine]))
        got = held(tensors, side, rank, full)["decoder.layers.0.mlp.linear_fc1.weight"]
        torch.testing.assert_close(got, expected)
        got = held(tensors, engine, rank, full)["model.layers.0.mlp.gate_up_proj.weight"]
        torch.testing.assert_close(got, expected)


def test_row_parallel_layers_are_cut_by_columns() -> None:
    tensors = Tensors.of(model_shape("qwen3"))
    full = full_weights(tensors)
    side = trainer_side(tensors, TrainerMesh(world=4, tensor=4))
    expected = full["model.layers.2.self_attn.o_proj.weight"].chunk(4, dim=1)
    for rank in range(4):
        got = held(tensors, side, rank, full)
        name = "decoder.layers.2.self_attention.linear_proj.weight"
        torch.testing.assert_close(got[name], expected[rank])


def test_the_engine_stacks_heads_and_shares_key_value_heads() -> None:
    """With more ranks than key-value heads, neighbours hold the same one."""
    tensors = Tensors.of(model_shape("qwen3", num_kv_heads=2))
    full = full_weights(tensors)
    side = rollout_side(tensors, RolloutMesh(world=4, tensor=4))
    q, k, v = (full[f"model.layers.3.self_attn.{x}_proj.weight"] for x in "qkv")
    for rank in range(4):
        head = rank // 2
        rows = slice(3 * head, 3 * head + 3)
        expected = torch.cat((q[6 * rank : 6 * rank + 6], k[rows], v[rows]))
        got = held(tensors, side, rank, full)["model.layers.3.self_attn.qkv_proj.weight"]
        torch.testing.assert_close(got, expected)


def test_vocabulary_rows_stop_at_the_vocabulary() -> None:
    """13 words: Megatron pads to 16 and halves; the engine pads to 64, the first rank has all."""
    tensors = Tensors.of(model_shape("llama"))
    full = full_weights(tensors)
    side = trainer_side(tensors, TrainerMesh(world=2, tensor=2))
    rows = [side.shapes(rank)["output_layer.weight"][0] for rank in range(2)]
    assert rows == [8, 5]
    engine = rollout_side(tensors, RolloutMesh(world=2, tensor=2))
    assert held(tensors, engine, 0, full)["lm_head.weight"].shape == (13, 8)
    assert "lm_head.weight" not in engine.shapes(1)


@pytest.mark.parametrize("pipeline", [1, 2])
def test_a_tied_output_layer_is_the_embedding(pipeline: int) -> None:
    tensors = Tensors.of(model_shape("qwen2", tied=True))
    full = full_weights(tensors)
    assert "lm_head.weight" not in full
    side = trainer_side(tensors, TrainerMesh(world=pipeline, pipeline=pipeline))
    last = held(tensors, side, pipeline - 1, full)
    assert ("output_layer.weight" in last) == (pipeline > 1)
    if pipeline > 1:
        torch.testing.assert_close(last["output_layer.weight"], full["model.embed_tokens.weight"])
    assert "lm_head.weight" not in rollout_side(tensors, RolloutMesh(world=1)).names


def test_experts_are_dealt_out_and_cut() -> None:
    """Four experts over EP=2 and expert TP=2, trainer order: expert tensor, then expert."""
    tensors = Tensors.of(model_shape("qwen3_moe"))
    full = full_weights(tensors)
    mesh = TrainerMesh(world=4, tensor=2, expert=2, expert_tensor=2)
    side = trainer_side(tensors, mesh)
    for rank in range(4):
        half, first = rank % 2, 2 * (rank // 2)
        got = held(tensors, side, rank, full)
        for local in range(2):
            name = f"model.layers.1.mlp.experts.{first + local}"
            gate, up, down = (full[f"{name}.{x}_proj.weight"] for x in ("gate", "up", "down"))
            mine = slice(4 * half, 4 * half + 4)
            parameter = f"decoder.layers.1.mlp.experts.local_experts.{local}"
            expected = torch.cat((gate[mine], up[mine]))
            torch.testing.assert_close(got[f"{parameter}.linear_fc1.weight"], expected)
            torch.testing.assert_close(got[f"{parameter}.linear_fc2.weight"], down[:, mine])


@pytest.mark.parametrize("expert", [False, True])
def test_the_engine_stacks_experts(expert: bool) -> None:
    tensors = Tensors.of(model_shape("mixtral"))
    full = full_weights(tensors)
    side = rollout_side(tensors, RolloutMesh(world=2, tensor=2, expert=expert))
    prefix = "model.layers.0.block_sparse_moe.experts"
    for rank in range(2):
        mine = slice(None) if expert else slice(4 * rank, 4 * rank + 4)
        experts = range(2 * rank, 2 * rank + 2) if expert else range(4)
        names = [f"{prefix}.{e}" for e in experts]
        w13 = [full[f"{n}.{w}.weight"][mine] for n in names for w in ("w1", "w3")]
        w2 = [full[f"{n}.w2.weight"][:, mine] for n in names]
        got = held(tensors, side, rank, full)
        torch.testing.assert_close(got[f"{prefix}.routed_experts.w13_weight"], torch.cat(w13))
        torch.testing.assert_close(got[f"{prefix}.routed_experts.w2_weight"], torch.cat(w2))


@pytest.mark.parametrize("virtual", [1, 2])
def test_layers_of_interleaved_stages(virtual: int) -> None:
    mesh = TrainerMesh(world=2, pipeline=2, virtual=virtual)
    expected = [[0, 1], [2, 3]] if virtual == 1 else [[0, 2], [1, 3]]
    assert [mesh.layers(stage, 4) for stage in range(2)] == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", Spec)
def test_every_tensor_is_held_whole_on_both_sides(family: str, spec: Spec) -> None:
    """The rectangles of one replica cover every tensor exactly once."""
    tensors = Tensors.of(model_shape(family), spec)
    trainer = trainer_side(tensors, TrainerMesh(world=4, tensor=2, pipeline=2))
    engine = rollout_side(tensors, RolloutMesh(world=2, tensor=2))
    for side in (trainer, engine):
        for number in range(len(tensors)):
            shape = tensors.row_of(number).shape
            count = torch.zeros(shape if len(shape) > 1 else (shape[0], 1))
            seen = {
                tuple(piece[2:6])
                for part in side.parts
                for piece in part[part[:, 0] == number].tolist()
            }
            for r0, r1, c0, c1 in seen:
                count[r0:r1, c0:c1] += 1
            assert bool((count == 1).all()), tensors.name(number)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (TrainerMesh(world=8, tensor=8), "4 key-value heads are not divisible by parallel.tensor"),
        (TrainerMesh(world=3, pipeline=3), "4 layers are not divisible by parallel.pipeline x"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(mesh: TrainerMesh, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_side(Tensors.of(model_shape("qwen3")), mesh)


def test_ranks_that_do_not_divide_are_named() -> None:
    with pytest.raises(
        ConfigError, match="3 trainer ranks are not divisible by tensor x pipeline = 2"
    ):
        TrainerMesh(world=3, tensor=2)
    with pytest.raises(ConfigError, match="3 rollout ranks are not divisible by"):
        RolloutMesh(world=3, tensor=2)
