"""What rank 0 leaves in the run folder besides metrics and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from passk_fast.config import RunConfig
from passk_fast.config.file import dump_toml

_PREEMPTED = "PREEMPTED"
_CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")


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
