"""What rank 0 leaves in the run folder besides metrics and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from passk_fast.config import RunConfig
from passk_fast.config.file import INPUTS, dump_toml

_PREEMPTED = "PREEMPTED"
_RECORDS = (
    "checkpoints",
    "tensorboard",
    "samples",
    "curve.png",
    "curve.svg",
    "eval.json",
    _PREEMPTED,
    "config.toml",
    "model",
    INPUTS,
    "metrics.jsonl",
)
"""What tells of a run, in the order in which it is moved aside: a move that is interrupted leaves
metrics without checkpoints, which the next start refuses."""
_CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def move_aside(folder: Path) -> Path | None:
    """Move the records of the run in `folder` into a new folder `abandoned-N` in it, which is a run
    folder too; None where there are none."""
    records = [folder / name for name in _RECORDS if (folder / name).exists()]
    if not records:
        return None
    number = 1
    while (aside := folder / f"abandoned-{number}").exists():
        number += 1
    aside.mkdir()
    for record in records:
        record.rename(aside / record.name)
    return aside


def write_config(config: RunConfig, model_dir: Path) -> None:
    """The resolved configuration, and the files of the model that `passk-fast convert` needs."""
    folder = Path(config.output_dir)
    (folder / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    kept = folder / "model"
    kept.mkdir(exist_ok=True)
    for file in model_dir.iterdir():
        if file.suffix in _CONFIG_SUFFIXES and "index" not in file.name:
            shutil.copyfile(file, kept / file.name)  # not a read-only mode


def mark_preempted(folder: Path, step: int) -> None:
    """Say that the run was stopped after a step and can be resumed."""
    (folder / _PREEMPTED).write_text(f"step {step}\n")


def mark_done(folder: Path) -> None:
    """Take back what `mark_preempted` said."""
    (folder / _PREEMPTED).unlink(missing_ok=True)
