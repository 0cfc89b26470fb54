"""CPU only: keeps vLLM's shared-memory segments apart between runs on one machine."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

_FOLDER = Path("/dev/shm")


@contextmanager
def own_segments() -> Iterator[None]:
    """vLLM names the segments of its tensor-parallel groups alike in every job under torchrun.

    Two runs at once, or one after a killed one, would fail with "errno 17". For engines started
    inside, the names carry a random token of the run; all ranks of the world enter together. On
    leaving, the names are removed, so that a killed process leaves nothing behind; what is mapped
    stays mapped.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    manager = cpu_communicator._CPUSHMDistributed
    original: Callable[[CpuCommunicator], str] = manager.make_group_name
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
