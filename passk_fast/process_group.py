"""The process group: device, back ends and torchrun's place of this process in the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from passk_fast.errors import ConfigError, PasskError
from passk_fast.host_memory import keep_freed_memory

T = TypeVar("T")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""torch's back ends by device."""


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda"; ConfigError when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device = 'cuda', but torch sees no CUDA GPU. Take device = 'auto'.")
    return "cuda" if available and wanted != "cpu" else "cpu"


def start_process_group(device: str, timeout_s: int) -> None:
    """Join torchrun's process group (gloo or NCCL); a single process makes a group of one.

    On a CPU the process keeps the memory it frees.
    """
    if device == "cpu":
        keep_freed_memory()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    use_own_gpu(device)
    dist.init_process_group(BACKENDS[device], timeout=timedelta(seconds=timeout_s))


def use_own_gpu(device: str) -> None:
    """With "cuda": the GPU of torchrun's local rank."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def from_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank: a collective. A PasskError that it raises there
    is raised on all ranks."""
    answer: list[object] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [work()]
        except PasskError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], PasskError):
        raise answer[0]
    return cast(T, answer[0])
