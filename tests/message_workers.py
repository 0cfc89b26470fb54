"""What ranks do in tests/test_process_group.py; each function is one rank's part."""

from __future__ import annotations

import torch.distributed as dist

from passk_fast.checkpoint.manifest import CorruptCheckpointError
from passk_fast.errors import DataError, PasskError
from passk_fast.process_group import broadcast_json, from_rank_0, gather_json

VALUE = {"text": "ä\ud800", "list": [1, 2.5, None, True], "nested": {"a": {}}, "tiny": 0.1 + 0.2}


def values_everywhere() -> tuple[object, object, object]:
    """Of every rank, of rank 0, and of rank 0's work."""
    rank = dist.get_rank()
    own = {**VALUE, "rank": rank, "long": "x" * (1000 * rank)}
    return gather_json(own), broadcast_json(own), from_rank_0(lambda: [rank, *VALUE])


def infinities() -> list[float]:
    return gather_json(float("inf") if dist.get_rank() else float("-inf"))


def error_everywhere(kind: str) -> tuple[str, str]:
    """Class and text of what each rank raises where rank 0 does."""
    kinds = {"data": DataError, "corrupt": CorruptCheckpointError, "own": _OwnError}

    def work() -> None:
        raise kinds[kind](f"{kind}: rows.jsonl:3 is broken.")

    try:
        from_rank_0(work)
    except PasskError as error:
        return type(error).__name__, str(error)
    return "", ""


class _OwnError(DataError):
    """A grandchild of PasskError."""


def tensor_for_an_object() -> str:
    """What cannot be JSON is refused where it is sent, before a peer waits for it."""
    try:
        gather_json(dist)
    except TypeError as error:
        return str(error)
    return ""
