"""Weight sync: every shard of the trainer straight to where the engine wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.config import RunConfig
from passk_fast.weights.exchange import Exchange, check_targets
from passk_fast.weights.megatron import Layout
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.placement import Side, rollout_side
from passk_fast.weights.reshard import plan_reshard


@dataclass(frozen=True)
class WeightSync:
    """The plan between one trainer mesh and one rollout mesh, made once, run every step."""

    exchange: Exchange
    side: Side
    """Where the engine's ranks hold what."""

    @classmethod
    def for_run(
        cls,
        config: RunConfig,
        layout: Layout,
        mesh: RolloutMesh,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> WeightSync:
        """As a run is configured: its data type, its buffers."""
        return cls.of(
            layout,
            mesh,
            dtype=getattr(torch, config.model.dtype),
            device=device,
            round_bytes=config.rollout.sync_mib << 20,
            group=group,
        )

    @classmethod
    def of(
        cls,
        layout: Layout,
        mesh: RolloutMesh,
        *,
        dtype: torch.dtype,
        device: torch.device,
        round_bytes: int,
        group: dist.ProcessGroup | None = None,
    ) -> WeightSync:
        """For layout.rank; `dtype` is the engine's, `round_bytes` bounds the buffers.

        Both meshes count the ranks of `group` (None: the default group).
        """
        side = rollout_side(layout.tensors, mesh)
        plan = plan_reshard(
            layout.tensors,
            layout.side,
            side,
            element_bytes=dtype.itemsize,
            round_bytes=round_bytes,
            rank=layout.rank,
        )
        exchange = Exchange(
            plan, layout.tensors, rank=layout.rank, dtype=dtype, device=device, group=group
        )
        return cls(exchange, side)

    def run(self, sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Fill the engine's `targets` from the trainer's `sources`: a collective.

        ConfigError when the targets are not what the layout table says, LostRankError when a rank
        goes silent.
        """
        self.check(targets)
        self.exchange.run(sources, targets)

    def check(self, targets: Mapping[str, Tensor]) -> None:
        """ConfigError when the targets are not what the layout table says."""
        check_targets(self.side, self.exchange.rank, targets)

    def verify(self, sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Compare checksums of every shard: a collective. DivergedError names what differs."""
        self.exchange.verify(sources, targets)
