"""CPU only: keeps vLLM's shared-memory segments apart between runs on one machine.

Under torchrun vLLM names the segments of its tensor-parallel groups alike in every job, so two
runs at once, or one after a killed one, fail on "errno 17". Here names carry a token of the run.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_FOLDER = Path("/dev/shm")


@contextmanager
def own_segments() -> Iterator[None]:
    """Engines started inside get segments of their own; all ranks of the world enter together.

    On leaving, the names are removed, so that a killed process leaves nothing behind: what is
    mapped stays mapped.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    manager = cpu_communicator._CPUSHMDistributed
    original: Callable[[Any], str] = manager.make_group_name
    token = _token()
    manager.make_group_name = staticmethod(lambda group: f"{original(group)}-{token}")
    try:
        yield
    finally:
        manager.make_group_name = staticmethod(original)
        for segment in _FOLDER.glob(f"*{token}*"):
            segment.unlink(missing_ok=True)


def _token() -> str:
    """The same random name on all ranks."""
    number = torch.tensor([secrets.randbits(62)])
    dist.broadcast(number, src=0)
    return f"{int(number):016x}"
