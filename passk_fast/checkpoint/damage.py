"""Says which file of a checkpoint is to blame when its tensors cannot be loaded.

Digests have matched by then: someone wrote the files, and the manifest over them, anew.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from passk_fast.checkpoint.manifest import CorruptCheckpointError
from passk_fast.errors import PasskError
from passk_fast.process import says_rank_lost

_MOST_SAID = 160
"""Characters of a library's own words."""


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Turn whatever the libraries make of a folder with other content into CorruptCheckpointError,
    with the file; an error of ours, of memory or of a rank that is gone passes."""
    try:
        yield
    except (PasskError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            cause = error.failures[min(error.failures)][0]
        if says_rank_lost(cause):
            raise
        said = " ".join(str(cause).split())[:_MOST_SAID]
        raise CorruptCheckpointError(
            f"{folder / _culprit(folder)} is as it was sealed, but does not hold what this run "
            f"needs ({type(cause).__name__}: {said}). Take another checkpoint with --resume STEP."
        ) from error


def _culprit(folder: Path) -> str:
    """The first file that cannot be read; the index of tensors where all can.

    Megatron 0.19 has no common.pt: it keeps that in the shards.
    """
    for name, read in _READERS.items():
        if name == "common.pt" and (shard := _shard_without_tensors(folder)):
            return shard
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
        except (Exception, CheckpointException):
            return name
    return ".metadata"


def _read_json(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        return json.loads((folder / name).read_bytes()).items()

    return read


def _read_common(folder: Path) -> object:
    return dist_checkpointing.load_common_state_dict(str(folder))["optimizer"]


def _read_index(folder: Path) -> object:
    return FileSystemReader(folder).read_metadata()


_READERS: dict[str, Callable[[Path], object]] = {
    "state.json": _read_json("state.json"),
    "metadata.json": _read_json("metadata.json"),
    ".metadata": _read_index,
    "common.pt": _read_common,
}
"""File -> what reads it and raises where it cannot."""


def _shard_without_tensors(folder: Path) -> str:
    """The first file with something else where the index says that a tensor is; "" without one."""
    for place in FileSystemReader(folder).read_metadata().storage_data.values():
        file = folder / place.relative_path
        if not file.is_file() or file.stat().st_size < place.offset + place.length:
            return str(place.relative_path)
        with file.open("rb") as stream:
            stream.seek(place.offset)
            if stream.read(4) != b"PK\x03\x04":  # torch saves every tensor as a zip archive
                return str(place.relative_path)
    return ""
