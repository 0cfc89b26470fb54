"""Weights of this rank's Megatron chunks from and to Hugging Face names.

`load` reads the shards a rank needs from a model folder. `full_tensors` walks all parameters in one
order on all ranks and yields full Hugging Face tensors everywhere: what vLLM and a checkpoint
conversion read. It is the seam that a faster resharding replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.weights.hf import HFReader
from passk_fast.weights.layout import ModelShape, Split, entry, from_shards, to_shard

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


class MeshLike(Protocol):
    """What this module needs of `distributed.Mesh`."""

    @property
    def tensor_rank(self) -> int: ...
    @property
    def tensor_size(self) -> int: ...
    @property
    def pipeline_rank(self) -> int: ...
    @property
    def pipeline_size(self) -> int: ...
    @property
    def tensor_group(self) -> dist.ProcessGroup: ...
    @property
    def pipeline_group(self) -> dist.ProcessGroup: ...


def named_parameters(chunks: list[Any]) -> dict[str, torch.nn.Parameter]:
    """Parameters of this rank by Megatron name with global layer indices."""
    named = {}
    for chunk in chunks:
        module = chunk
        while hasattr(module, "module"):
            module = module.module
        layers = [layer.layer_number - 1 for layer in module.decoder.layers]
        for name, parameter in module.named_parameters():
            match = _LAYER.match(name)
            if match:
                name = f"decoder.layers.{layers[int(match[1])]}.{name[match.end() :]}"
            named[name] = parameter
    return named


@torch.no_grad()
def load(chunks: list[Any], reader: HFReader, shape: ModelShape, mesh: MeshLike) -> None:
    """Fill this rank's parameters from a model folder; ConfigError names a missing tensor."""
    for name, parameter in named_parameters(chunks).items():
        row = entry(name, shape)
        tensors = [reader.read(hf_name) for hf_name in row.hf_names]
        shard = to_shard(row.split, tensors, shape, mesh.tensor_rank, mesh.tensor_size)
        assert shard.shape == parameter.shape, f"{name}: {shard.shape} != {parameter.shape}"
        parameter.copy_(shard)


def _gather_tensor_parallel(x: Tensor, mesh: MeshLike) -> list[Tensor]:
    if mesh.tensor_size == 1:
        return [x]
    shards = [torch.empty_like(x) for _ in range(mesh.tensor_size)]
    dist.all_gather(shards, x.contiguous(), group=mesh.tensor_group)
    return shards


def _stage_inventory(
    named: dict[str, torch.nn.Parameter], mesh: MeshLike
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes of every pipeline stage's parameters, the same list on all its ranks."""
    mine = [(name, tuple(parameter.shape)) for name, parameter in named.items()]
    if mesh.pipeline_size == 1:
        return [mine]
    stages: list[Any] = [None] * mesh.pipeline_size
    dist.all_gather_object(stages, mine, group=mesh.pipeline_group)
    return stages


@torch.no_grad()
def full_tensors(
    chunks: list[Any], shape: ModelShape, mesh: MeshLike
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, full tensor) on every rank, one Megatron parameter at a time.

    A collective: every rank must exhaust it. A tied output layer is yielded once, as the embedding.
    """
    named = named_parameters(chunks)
    sources = dist.get_process_group_ranks(mesh.pipeline_group)
    for stage, inventory in enumerate(_stage_inventory(named, mesh)):
        for name, shard_shape in inventory:
            if name == "output_layer.weight" and shape.tied:
                continue
            if stage == mesh.pipeline_rank:
                shard = named[name].detach()
            else:
                like = next(iter(named.values()))
                shard = torch.empty(shard_shape, dtype=like.dtype, device=like.device)
            if mesh.pipeline_size > 1:
                shard = shard.contiguous()
                dist.broadcast(shard, sources[stage], group=mesh.pipeline_group)
            row = entry(name, shape)
            if row.split is Split.NONE:
                yield row.hf_names[0], shard
                continue
            shards = _gather_tensor_parallel(shard, mesh)
            yield from zip(row.hf_names, from_shards(row.split, shards, shape), strict=True)
