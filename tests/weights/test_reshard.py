"""The resharding plan: every destination byte once, from a holder, and no byte too many."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passk_fast import native
from passk_fast.errors import ConfigError
from passk_fast.model.families import FAMILIES
from passk_fast.model.shape import ModelShape
from passk_fast.weights import reshard
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
from passk_fast.weights.placement import Side, Tensors, rollout_side, trainer_side
from passk_fast.weights.reshard import DST, ROUND, SRC, ReshardPlan, plan_reshard
from tests.weights.shapes import full_weights, held, model_shape

BYTES = 8


@st.composite
def trainer_meshes(draw: st.DrawFn) -> TrainerMesh:
    tensor, pipeline = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    virtual = draw(st.sampled_from([1, 2])) if pipeline == 2 else 1
    expert, expert_tensor = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    within = np.lcm(tensor, expert * expert_tensor) * draw(st.sampled_from([1, 2]))
    return TrainerMesh(
        world=int(within) * pipeline,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        expert=expert,
        expert_tensor=expert_tensor,
        first_rank=draw(st.sampled_from([0, 2])),
    )


@st.composite
def rollout_meshes(draw: st.DrawFn) -> RolloutMesh:
    tensor = draw(st.sampled_from([1, 2, 4]))
    return RolloutMesh(
        world=tensor * draw(st.sampled_from([1, 2, 3])),
        tensor=tensor,
        expert=draw(st.booleans()),
        first_rank=draw(st.sampled_from([0, 3])),
    )


def apply(
    plan: ReshardPlan, sources: dict[int, dict[str, torch.Tensor]], side: Side
) -> dict[int, dict[str, torch.Tensor]]:
    """What all ranks hold after the plan; an element that is written twice is an error."""
    out: dict[int, dict[str, torch.Tensor]] = {}
    for move in plan.transfers.tolist():
        _, src, dst, _, sp, sr, sc, dp, dr, dc, rows, cols = move
        if dst not in out:
            sizes = side.shapes(dst)
            out[dst] = {n: torch.full(size, -1.0, dtype=torch.float64) for n, size in sizes.items()}
        target = out[dst][side.names[dp]][dr : dr + rows, dc : dc + cols]
        assert target.shape == (rows, cols)
        assert bool((target == -1).all())
        source = sources[src][plan.source_names[sp]][sr : sr + rows, sc : sc + cols]
        assert bool((source != -1).all()), "sent from a rank that does not hold it"
        target.copy_(source)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.booleans(),
    trainer_meshes(),
    rollout_meshes(),
    st.sampled_from([64, 4096, 1 << 20]),
)
def test_every_rank_gets_its_shard_and_nothing_it_has(
    family: str,
    tied: bool,
    trainer: TrainerMesh,
    rollout: RolloutMesh,
    round_bytes: int,
) -> None:
    tensors = Tensors.of(model_shape(family, tied=tied))
    full = full_weights(tensors)
    source, target = trainer_side(tensors, trainer), rollout_side(tensors, rollout)
    plan = plan_reshard(tensors, source, target, element_bytes=BYTES, round_bytes=round_bytes)
    sources = {rank: held(tensors, source, rank, full) for rank in trainer.ranks}
    got = apply(plan, sources, target)
    for rank in rollout.ranks:
        expected = held(tensors, target, rank, full)
        assert got[rank].keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(got[rank][name], values), name
        has = {x for p in sources.get(rank, {}).values() for x in p.flatten().tolist()}
        needs = [x for p in expected.values() for x in p.flatten().tolist()]
        lacks = sum(x not in has for x in needs)
        assert plan.received[rank] == lacks * BYTES
        assert plan.kept[rank] == (len(needs) - lacks) * BYTES
    assert plan.sent.sum() == plan.received.sum()
    check_rounds(plan, round_bytes)


def check_rounds(plan: ReshardPlan, round_bytes: int) -> None:
    """No rank moves more than a round holds, except a single row that is larger by itself."""
    moves = plan.transfers[plan.transfers[:, ROUND] >= 0]
    assert not (moves[:, SRC] == moves[:, DST]).any()
    for end in (SRC, DST):
        loads: dict[tuple[int, int], list[int]] = defaultdict(list)
        for move in moves:
            size = int(move[reshard.ROWS]) * int(move[reshard.COLS]) * BYTES
            loads[int(move[ROUND]), int(move[end])].append(size)
        for sizes in loads.values():
            assert sum(sizes) <= round_bytes or len(sizes) == 1
    if len(moves):
        assert plan.rounds == moves[:, ROUND].max() + 1


@settings(max_examples=30, deadline=None)
@given(trainer_meshes(), rollout_meshes())
def test_replicas_send_alike(trainer: TrainerMesh, rollout: RolloutMesh) -> None:
    """Ranks that hold the same and receive nothing differ by at most one message."""
    tensors = Tensors.of(model_shape("qwen3_moe"))
    source = trainer_side(tensors, trainer)
    apart = RolloutMesh(world=rollout.world, tensor=rollout.tensor, first_rank=trainer.ranks.stop)
    plan = plan_reshard(
        tensors, source, rollout_side(tensors, apart), element_bytes=BYTES, round_bytes=512
    )
    alike: dict[bytes, list[int]] = defaultdict(list)
    for rank in trainer.ranks:
        alike[source.of_rank(rank).tobytes()].append(int(plan.sent[rank]))
    sizes = plan.transfers[:, reshard.ROWS].astype(np.int64) * plan.transfers[:, reshard.COLS]
    for loads in alike.values():
        assert max(loads) - min(loads) <= sizes.max() * BYTES


def test_all_ranks_agree_on_what_moves_and_when() -> None:
    """Each rank's own plan is its part of the whole, in the same order."""
    tensors = Tensors.of(model_shape("qwen3_moe"))
    source = trainer_side(tensors, TrainerMesh(world=8, tensor=2, pipeline=2, expert=4))
    target = rollout_side(tensors, RolloutMesh(world=8, tensor=4))
    whole = plan_reshard(tensors, source, target, element_bytes=BYTES, round_bytes=1024)
    for rank in range(8):
        own = plan_reshard(
            tensors, source, target, element_bytes=BYTES, round_bytes=1024, rank=rank
        )
        mine = (whole.transfers[:, SRC] == rank) | (whole.transfers[:, DST] == rank)
        assert np.array_equal(own.transfers, whole.transfers[mine])
        assert own.rounds == whole.rounds


def test_few_rounds_are_needed() -> None:
    """At most a third more than the busiest rank's bytes ask for."""
    tensors = Tensors.of(model_shape("qwen3", hidden=64, ffn_width=256))
    source = trainer_side(tensors, TrainerMesh(world=8, tensor=4, pipeline=2))
    target = rollout_side(tensors, RolloutMesh(world=8, tensor=2))
    plan = plan_reshard(tensors, source, target, element_bytes=BYTES, round_bytes=1 << 15)
    busiest = max(plan.sent.max(), plan.received.max())
    assert plan.rounds <= np.ceil(busiest / (1 << 15) * 4 / 3) + 1


def test_a_tensor_without_a_complete_holder_is_named() -> None:
    tensors = Tensors.of(model_shape("llama"))
    source = trainer_side(tensors, TrainerMesh(world=2, tensor=2))
    del source.parts[1], source.ranks[1]
    with pytest.raises(ConfigError, match=r"No ranks hold all of model\.embed_tokens\.weight"):
        plan_reshard(
            tensors, source, rollout_side(tensors, RolloutMesh(world=2)), element_bytes=BYTES
        )


def test_overlapping_holders_may_share_a_rectangle() -> None:
    """Sources that overlap in part: the destination is still written once, by holders."""
    source = np.array([[0, 0, 0, 6, 0, 4, 0, 0], [0, 0, 4, 10, 0, 4, 0, 0]], np.int32)
    target = np.array([[0, 0, 0, 10, 0, 4, 0, 0]], np.int32)
    moves, sent, received, kept, _ = native.plan_reshard(
        1, source, [1, 1], [[0], [1]], target, [1], [[2]], 3, 1, 1 << 20, -1
    )
    rows = sorted((dr, dr + n, src) for _, src, _, _, _, _, _, _, dr, _, n, _ in moves.tolist())
    assert [(a, b) for a, b, _ in rows] == [(0, 4), (4, 6), (6, 10)]
    assert (rows[0][2], rows[2][2]) == (0, 1)
    assert sum(sent) == received[2] == 40
    assert kept == [0, 0, 0]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ([1, 0, 0, 1, 0, 1, 0, 0], "a piece of tensor 1 of 1"),
        ([0, 0, 1, 0, 0, 1, 0, 0], "is no rectangle"),
    ],
)
def test_pieces_out_of_range_are_refused(piece: list[int], message: str) -> None:
    good = np.array([[0, 0, 0, 1, 0, 1, 0, 0]], np.int32)
    with pytest.raises(ValueError, match=message):
        native.plan_reshard(
            1, np.array([piece], np.int32), [1], [[0]], good, [1], [[0]], 1, 1, 8, -1
        )


def qwen3_moe(layers: int, hidden: int, width: int, heads: int) -> ModelShape:
    """A published size with 128 experts."""
    return ModelShape.parse(
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "moe_intermediate_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    )


def test_a_30b_mixture_is_planned_for_64_ranks_within_its_bytes() -> None:
    """Qwen3-30B-A3B: every rank receives what it lacks of its quarter, sources are even."""
    tensors = Tensors.of(qwen3_moe(48, 2048, 768, 32))
    source = trainer_side(tensors, TrainerMesh(world=64, tensor=4, pipeline=2, expert=8))
    target = rollout_side(tensors, RolloutMesh(world=64, tensor=4))
    plan = plan_reshard(tensors, source, target, element_bytes=2, rank=5)
    needed = [
        sum(rows * cols for rows, cols in target.shapes(rank).values()) * 2 for rank in (0, 5, 63)
    ]
    assert [plan.received[r] + plan.kept[r] for r in (0, 5, 63)] == needed
    assert plan.sent.max() <= 1.05 * plan.sent.mean()
