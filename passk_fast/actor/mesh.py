"""The trainer's mesh: the one file of ours that touches Megatron's parallel_state.

`Mesh` is where a rank stands (tensor fastest, then context, data, pipeline: Megatron's default
order), with the groups that the rest of the project needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.config import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This rank's place in the trainer's mesh."""

    rank: int
    world_size: int
    device: str
    """ "cpu", "cuda", or "meta" in a plan"""
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    virtual_pipeline_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    context_group: dist.ProcessGroup
    data_group: dist.ProcessGroup
    replica_group: dist.ProcessGroup
    """Ranks with the same weights, experts apart: data- and context-parallel ones."""
    expert_replica_group: dist.ProcessGroup
    """Ranks with the same experts."""

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu" if self.device == "cpu" else torch.cuda.current_device())


def make_mesh(parallel: ParallelConfig, device: str) -> Mesh:
    """Build Megatron's groups over the default process group; ConfigError if it does not divide."""
    from megatron.core import parallel_state as ps

    parallel.data(dist.get_world_size())
    before = set(_groups())
    with megatron_scope(device):
        ps.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=(
                parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
            ),
            context_parallel_size=parallel.context,
            expert_model_parallel_size=parallel.expert,
            expert_tensor_parallel_size=parallel.expert_tensor,
            create_gloo_process_groups=device != "meta",
        )
    _MADE.extend(group for group in _groups() if group not in before)
    return Mesh(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=device,
        tensor_rank=ps.get_tensor_model_parallel_rank(),
        tensor_size=parallel.tensor,
        pipeline_rank=ps.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel.pipeline,
        virtual_pipeline_size=parallel.virtual_pipeline,
        context_rank=ps.get_context_parallel_rank(),
        context_size=parallel.context,
        data_rank=ps.get_data_parallel_rank(),
        data_size=ps.get_data_parallel_world_size(),
        tensor_group=ps.get_tensor_model_parallel_group(),
        pipeline_group=ps.get_pipeline_model_parallel_group(),
        context_group=ps.get_context_parallel_group(),
        data_group=ps.get_data_parallel_group(),
        replica_group=ps.get_data_parallel_group(with_context_parallel=True),
        expert_replica_group=ps.get_expert_data_parallel_group(),
    )


_MADE: list[dist.ProcessGroup] = []
"""Groups of the mesh that stands; Megatron itself forgets them without ending them."""


def _groups() -> list[dist.ProcessGroup]:
    return list(dist.distributed_c10d._world.pg_map)


def drop_mesh() -> None:
    """Megatron forgets its process groups without ending them; tests then build another mesh.

    Every gloo group has threads of its own, one of which wakes a hundred times a second.
    """
    from megatron.core import parallel_state as ps

    ps.destroy_model_parallel()
    for group in _MADE:
        if group in dist.distributed_c10d._world.pg_map:
            dist.destroy_process_group(group)
    _MADE.clear()
