"""Writes a sharded state dict in torch's distributed-checkpoint format, one tensor at a time.

Megatron's own writer first holds a copy of every tensor that is part of a larger storage, which all
weights are, then forks a process for each file.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _write_item
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict

_FILE_BYTES = 256 << 20
"""A rank begins another file above this, so that digests of several are taken at once."""


class StreamingStrategy(TorchDistSaveShardedStrategy):
    """Saves what Megatron's default strategy saves, and its default strategy loads it."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        """Write the tensors that this rank is to write. A collective.

        Raises:
            CheckpointException: a rank's disk is full or failing.
        """
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, keep_only_main_replica=True
        )
        dcp.save(
            mcore_to_pyt_state_dict(by_key),
            storage_writer=_Writer(str(checkpoint_dir)),
            planner=MCoreSavePlanner(flatten_state_dict=False, dedup_replicated_tensors=False),
        )


class _Writer(FileSystemWriter):
    """Resolves, writes and forgets one item after the other."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the plan's items into `PREFIX0.distcp` and so on; each file is synced."""
        results: list[WriteResult] = []
        items = list(plan.items)
        number = 0
        while items:
            name = f"{plan.storage_data.prefix}{number}.distcp"
            with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb") as stream:
                while items and stream.tell() < _FILE_BYTES:
                    item = items.pop(0)
                    data = _data(planner, item)
                    results.append(
                        _write_item(
                            self.transforms, stream, data, item, name, self.serialization_format
                        )
                    )
                stream.flush()
                os.fsync(stream.fileno())
            number += 1
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _data(planner: SavePlanner, item: WriteItem) -> Tensor | io.BytesIO:
    """What is written for an item; torch.save would write all of the storage that a view is of."""
    data = planner.resolve_data(item)
    if isinstance(data, io.BytesIO):
        return data
    assert isinstance(data, Tensor), f"{item.index} is neither a tensor nor bytes"
    tensor = data.detach().cpu().contiguous()
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    as_bytes = tensor.flatten().view(torch.uint8).numpy()
    return torch.from_numpy(as_bytes).view(tensor.dtype).view(tensor.shape)
