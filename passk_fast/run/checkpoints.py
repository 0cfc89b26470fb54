"""Checkpoints of a run: the actor's tensors, and as JSON what its other parts remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.checkpoint import megatron
from passk_fast.checkpoint.finite import check_finite
from passk_fast.checkpoint.manifest import verify_checkpoint
from passk_fast.checkpoint.store import CheckpointStore, disk_errors
from passk_fast.process_group import from_rank_0
from passk_fast.run.folder import move_aside
from passk_fast.run.inputs import Inputs
from passk_fast.run.loop import Trainer
from passk_fast.run.start import Start, find_start
from passk_fast.run.state import RunState, read_state_file

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
        """Write a checkpoint of the step, unless there is one. `record` is the step's, of JSON
        values.

        Raises:
            DivergedError: a weight or a moment is not finite; nothing is written.
            DiskError: there is no room.
        """
        trainer, rank = self._trainer, self._actor.mesh.rank
        step = trainer.progress.step
        if self._store.path(step).exists():
            return
        check_finite(self._actor, step)

        def make_room() -> str:
            weights = self._actor.num_weights * _BYTES_PER_PARAMETER[self._actor.config.model.dtype]
            self._store.check_space(max(weights, self._store.newest_bytes()))
            return str(self._store.begin(step))

        staging = Path(from_rank_0(make_room))
        state: RunState = {
            "progress": asdict(trainer.progress),
            "sampling": trainer.sampling.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "gradient_norms": trainer.guards.norms.state_dict(),
            "inputs": self._inputs,
            "record": record,
        }
        megatron.write(self._actor, staging, dict(state))
        if rank == 0:
            self._store.commit(step)
        dist.barrier()


def check_checkpoint(folder: Path) -> None:
    """CorruptCheckpointError unless the files are those that were saved, and hold a run's state."""
    verify_checkpoint(folder)
    read_state_file(folder)


def read_state(actor: Actor, folder: Path) -> RunState:
    """Load a verified checkpoint's tensors into the actor; returns the rest. A collective.

    CorruptCheckpointError where it does not hold what the run needs.
    """
    megatron.read(actor, folder)
    return read_state_file(folder)


def begin(store: CheckpointStore, start: Start, recorded: int) -> Path | None:
    """The checkpoint that a run begins from, None for step 0, with everything later than it set
    aside where `start` asks for that. Rank 0 looks; a collective. Errors and `recorded` as in
    `find_start`."""

    def look() -> str | None:
        found = find_start(store, start, recorded, check_checkpoint)
        with disk_errors(store.root):
            if start.fresh:
                move_aside(store.root.parent)
            store.root.mkdir(parents=True, exist_ok=True)
        if start.step is not None:
            store.go_back_to(start.step)
        return None if found is None else str(found)

    folder = from_rank_0(look)
    return None if folder is None else Path(folder)
