"""Bytes and time of a weight sync, by the same plan that the sync runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passk_fast.config import RunConfig
from passk_fast.plan.hardware import RANKS_PER_NODE, RATES, Gpu, sides
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
from passk_fast.weights.placement import Tensors, rollout_side, trainer_side
from passk_fast.weights.reshard import COLS, DST, ROWS, SRC, plan_reshard

_SAMPLED = 8
"""Ranks whose moves are looked at one by one; totals are over all."""


@dataclass(frozen=True, kw_only=True)
class Reshard:
    """One weight sync."""

    received: int
    """Bytes of the rank that receives most."""
    sent: int
    kept: int
    """Bytes that the engine's rank which keeps least has already."""
    total: int
    """Bytes that move, over all ranks."""
    rounds: int
    near: float
    """Share that comes from the same node."""
    seconds: float


def reshard_of(config: RunConfig, tensors: Tensors, gpu: Gpu, gpus: int) -> Reshard:
    """The plan for this configuration, and its time on the slowest of `_SAMPLED` ranks."""
    rollout = config.rollout
    trainers, engines = sides(gpus, rollout.dedicated_ranks)
    mesh = RolloutMesh(world=engines, tensor=rollout.tensor, first_rank=gpus - engines)
    source = trainer_side(tensors, TrainerMesh.of(config.parallel, trainers))
    target = rollout_side(tensors, mesh)
    size = 2 if config.model.dtype == "bfloat16" else 4
    link, network = gpu.link_bytes * RATES.link, gpu.network_bytes * RATES.network
    copy = gpu.memory_bytes * RATES.memory / 2
    near = far = 0
    slowest = 0.0
    # A stride that is no multiple of a node or an engine, so that all places in them occur.
    for rank in range(gpus - 1, -1, -(gpus // _SAMPLED + 1)):
        plan = plan_reshard(
            tensors,
            source,
            target,
            element_bytes=size,
            round_bytes=rollout.sync_mib << 20,
            rank=rank,
        )
        moves = plan.transfers[plan.transfers[:, SRC] != plan.transfers[:, DST]]
        area = size * moves[:, ROWS].astype(np.int64) * moves[:, COLS]
        same = moves[:, SRC] // RANKS_PER_NODE == moves[:, DST] // RANKS_PER_NODE
        mine = moves[:, DST] == rank
        near += int(area[same & mine].sum())
        far += int(area[~same & mine].sum())
        # Both directions run at once.
        seconds = max(
            float(area[same & way].sum()) / link + float(area[~same & way].sum()) / network
            for way in (mine, ~mine)
        )
        slowest = max(slowest, seconds + int(plan.kept[rank]) / copy)
    return Reshard(
        received=int(plan.received.max()),
        sent=int(plan.sent.max()),
        kept=int(plan.kept[mesh.first_rank :].min()),
        total=int(plan.received.sum()),
        rounds=plan.rounds,
        near=near / (near + far) if near + far else 1.0,
        seconds=slowest,
    )
