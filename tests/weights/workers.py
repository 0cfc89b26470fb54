"""What the ranks of a pool run for the weight tests."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from passk_fast.errors import PasskError
from passk_fast.weights import exchange as exchange_module
from passk_fast.weights.exchange import Exchange
from passk_fast.weights.hf import HFReader
from passk_fast.weights.megatron import Layout, full_tensors, load, named_parameters
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
from passk_fast.weights.placement import Tensors, rollout_side, trainer_side
from passk_fast.weights.reshard import plan_reshard
from tests.weights.shapes import Chunk, full_weights, held, model_shape


def exchange(
    family: str,
    trainer: dict[str, Any],
    rollout: dict[str, Any],
    round_bytes: int,
    damage: str = "",
    dtype: str = "float32",
    alone: int = 1 << 16,
) -> str:
    """Moves a small model's weights; "" or the message of what `verify` found.

    `damage` is done on the last rank between `run` and `verify`. Rectangles of `alone` elements
    and more travel by themselves.
    """
    exchange_module._ALONE = alone
    rank = dist.get_rank()
    tensors = Tensors.of(model_shape(family))
    full = {n: w.to(torch.float32) for n, w in full_weights(tensors).items()}
    full64 = {n: w.to(torch.float64) for n, w in full.items()}
    source = trainer_side(tensors, TrainerMesh(**trainer))
    target = rollout_side(tensors, RolloutMesh(**rollout))
    target_dtype = getattr(torch, dtype)
    plan = plan_reshard(
        tensors,
        source,
        target,
        element_bytes=target_dtype.itemsize,
        round_bytes=round_bytes,
        rank=rank,
    )
    mover = Exchange(plan, tensors, rank=rank, dtype=target_dtype, device=torch.device("cpu"))
    weights = {n: w.float() for n, w in held(tensors, source, rank, full64).items()}
    out = {n: torch.full(s, -1.0, dtype=target_dtype) for n, s in target.shapes(rank).items()}
    mover.run(weights, out)
    expected = {n: w.to(target_dtype) for n, w in held(tensors, target, rank, full64).items()}
    assert out.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(out[name], values), name
    assert mover.bytes_received == sum(plan.received[rank : rank + 1])
    assert mover.bytes_sent == sum(plan.sent[rank : rank + 1])
    if damage and rank == dist.get_world_size() - 1:
        _damage(out, damage)
    try:
        mover.verify(weights, out)
    except PasskError as error:
        return str(error)
    return ""


def round_trip(family: str, folder: str, trainer: dict[str, Any], tied: bool) -> None:
    """Import onto this rank's part of a mesh and export again."""
    layout = Layout.of(model_shape(family, tied=tied), TrainerMesh(**trainer), dist.get_rank())
    chunk = Chunk(layout)
    load([chunk], HFReader(folder), layout)
    reader = HFReader(folder)
    full = {n: reader.read(n).double() for n in reader.names()}
    for name, values in held(layout.tensors, layout.side, layout.rank, full).items():
        got = named_parameters([chunk])[name].detach().double().view(values.shape)
        assert torch.equal(got, values.clamp(min=0)), name
    out = dict(full_tensors([chunk], layout))
    assert out.keys() == full.keys()
    for name, tensor in out.items():
        assert torch.equal(tensor.double(), full[name]), name
    only_first = dict(full_tensors([chunk], layout, ranks=[0]))
    assert len(only_first) == (len(full) if dist.get_rank() == 0 else 0)


def _damage(out: dict[str, torch.Tensor], damage: str) -> None:
    weight = out["model.layers.1.self_attn.o_proj.weight"]
    if damage == "one bit":
        weight.view(torch.int32)[2, 1] ^= 1
    if damage == "rows swapped":
        weight[[0, 1]] = weight[[1, 0]]
    if damage == "never arrived":
        weight.fill_(-1)


def dies(round_bytes: int) -> str:
    """Rank 1 ends at once; what rank 0 says about it."""
    tensors = Tensors.of(model_shape("qwen3"))
    rank = dist.get_rank()
    group = dist.new_group(timeout=timedelta(seconds=10))
    source = trainer_side(tensors, TrainerMesh(world=2, tensor=2))
    target = rollout_side(tensors, RolloutMesh(world=2))
    plan = plan_reshard(
        tensors, source, target, element_bytes=4, round_bytes=round_bytes, rank=rank
    )
    mover = Exchange(
        plan, tensors, rank=rank, dtype=torch.float32, device=torch.device("cpu"), group=group
    )
    if rank == 1:
        os._exit(7)
    weights = {n: torch.zeros(s) for n, s in source.shapes(rank).items()}
    try:
        mover.run(weights, {n: torch.zeros(s) for n, s in target.shapes(rank).items()})
    except PasskError as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    return "nothing"
