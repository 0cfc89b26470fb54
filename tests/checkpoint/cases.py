"""Checkpoints of a few small files, and what can be done to them."""

from __future__ import annotations

import random
from pathlib import Path

from passk_fast.checkpoint.store import CheckpointStore

SIZES = {"common.pt": 300, "shards/rank0.distcp": 500, "shards/rank1.distcp": 500, ".metadata": 90}


def content(step: int, name: str) -> bytes:
    return random.Random(f"{step} {name}").randbytes(SIZES[name])


def write_files(folder: Path, step: int) -> None:
    for name in SIZES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content(step, name))


def save(store: CheckpointStore, step: int) -> Path:
    write_files(store.begin(step), step)
    return store.commit(step)


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
