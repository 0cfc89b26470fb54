"""Where a run begins: at its newest intact checkpoint, at one that is named, or at step 0.

Nothing is started over while there are records of steps whose checkpoints are damaged or lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from passk_fast.checkpoint.manifest import CorruptCheckpointError
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.config import RunConfig
from passk_fast.errors import ConfigError

_REMEDY = (
    "Nothing was changed. Put the files back and run the same command again, or add --resume STEP "
    "to go on from the checkpoint of that step, which must be intact, or --fresh to move the "
    "records of this run into a folder abandoned-N and start at step 0."
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the command line says of where to begin; by default at the newest intact checkpoint."""

    step: int | None = None
    """Begin at the checkpoint of this step (--resume)."""
    fresh: bool = False
    """Move what the run folder records aside and begin at step 0 (--fresh)."""

    def under(self, config: RunConfig) -> Start:
        """With checkpoint.resume = false, always fresh; ConfigError where a step is asked for."""
        if config.checkpoint.resume:
            return self
        if self.step is not None:
            raise ConfigError(
                f"command line: --resume {self.step} with checkpoint.resume = false, which always "
                "starts at step 0. Take back one of them."
            )
        return Start(fresh=True)


def checkpoint_store(config: RunConfig) -> CheckpointStore:
    """The checkpoints in the run folder."""
    kept = config.checkpoint
    return CheckpointStore(Path(config.output_dir) / "checkpoints", kept.keep, kept.keep_every)


def find_start(
    store: CheckpointStore, start: Start, recorded: int, check: Callable[[Path], None]
) -> Path | None:
    """The checkpoint to begin from; None for step 0. Nothing is changed.

    Args:
        recorded: the last step that metrics.jsonl records, 0 without one.
        check: raises CorruptCheckpointError for a checkpoint that is damaged.

    Raises:
        CorruptCheckpointError: the checkpoint that is asked for, or every one, is damaged.
        ConfigError: there is none of the step that is asked for, or none at all after steps that
            had one.
    """
    if start.fresh:
        return None
    if start.step is not None:
        return _asked_for(store, start.step, check)
    try:
        newest = store.newest_good(check)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{error} {_REMEDY}") from None
    if newest is not None:
        return newest[1]
    # The folder is made when a run begins: a run that ended before its first checkpoint has one.
    if recorded and (store.was_used() or not store.root.is_dir()):
        raise ConfigError(
            f"{store.root}: no checkpoint is left, but metrics.jsonl records this run up to step "
            f"{recorded}. {_REMEDY}"
        )
    return None


def _asked_for(store: CheckpointStore, step: int, check: Callable[[Path], None]) -> Path:
    steps = store.steps()
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none at all"
        raise ConfigError(
            f"command line: --resume {step}: {store.root} has no checkpoint of that step; {there}."
        )
    try:
        check(store.path(step))
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"--resume {step}: {error} {_REMEDY}") from None
    return store.path(step)
