"""Checkpoints of a run: the actor's tensors, and as JSON what its other parts remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.checkpoint import megatron
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.run.inputs import Inputs
from passk_fast.run.loop import Trainer
from passk_fast.run.parts import RunState

_BYTES_PER_PARAMETER = {"float32": 12, "bfloat16": 14}
"""Of a checkpoint, by data type: weights, their main weights in float32 where these are others, and
two Adam moments in float32."""


class Checkpoints:
    """Saves the parts of a run. All ranks call everything together."""

    def __init__(
        self, store: CheckpointStore, actor: Actor, trainer: Trainer, inputs: Inputs
    ) -> None:
        self._store, self._actor, self._trainer, self._inputs = store, actor, trainer, inputs

    def save(self, record: Mapping[str, object]) -> None:
        """Write a checkpoint of the step, unless there is one. DiskError where it has no room.

        `record` is the step's, of JSON values.
        """
        trainer, rank = self._trainer, self._actor.mesh.rank
        step = trainer.progress.step
        if self._store.path(step).exists():
            return
        staging = ""
        if rank == 0:
            weights = self._actor.num_weights * _BYTES_PER_PARAMETER[self._actor.config.model.dtype]
            self._store.check_space(max(weights, self._store.newest_bytes()))
            staging = str(self._store.begin(step))
        state: RunState = {
            "progress": asdict(trainer.progress),
            "sampling": trainer.sampling.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "inputs": self._inputs,
            "record": record,
        }
        megatron.write(self._actor, Path(_from_rank_0(staging)), dict(state))
        if rank == 0:
            self._store.commit(step)
        dist.barrier()


def read_state(actor: Actor, folder: Path) -> RunState:
    """Load a verified checkpoint's tensors into the actor; returns the rest. A collective."""
    return cast(RunState, megatron.read(actor, folder))


def newest_checkpoint(store: CheckpointStore, mesh: Mesh) -> Path | None:
    """The folder of the newest good checkpoint; rank 0 looks, and all ranks learn what it found."""
    found = ""
    if mesh.rank == 0:
        newest = store.newest_good()
        found = str(newest[1]) if newest else ""
    found = _from_rank_0(found)
    return Path(found) if found else None


def _from_rank_0(text: str) -> str:
    texts = [text]
    dist.broadcast_object_list(texts, src=0)
    return texts[0]
