"""The process group: device, back ends and torchrun's place of this process in the run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from passk_fast.errors import ConfigError, PasskError
from passk_fast.host_memory import keep_freed_memory

T = TypeVar("T")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""torch's back ends by device."""
LOOPBACK = "127.0.0.1"
_BACKLOG = 4096
"""Connections that may wait for the store: every rank comes at once."""


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
    alone = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": "0", "WORLD_SIZE": "1"}
    for name, value in (alone | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        os.environ.setdefault(name, value)
    use_own_gpu(device)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=timeout_s)
    store = join_store(rank, world, timeout)
    dist.init_process_group(
        BACKENDS[device], store=store, rank=rank, world_size=world, timeout=timeout
    )


def join_store(rank: int, world: int, timeout: timedelta) -> TCPStore:
    """The store at which the ranks meet; rank 0 serves it. All ranks of the job call it.

    It listens on one address: loopback where all ranks are on this host, else torchrun's
    MASTER_ADDR. (The `TCPStore` that torch makes by itself listens on every interface, and answers
    whoever asks.) On one host gloo and NCCL are kept to loopback as well.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = "lo"
        address = LOOPBACK
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return open_store(address, port, serves, timeout, world)


def open_store(
    address: str, port: int, serves: bool, timeout: timedelta, world: int | None = None
) -> TCPStore:
    """A store at an address: served from there, and from no other interface, or joined."""
    if not serves:
        return TCPStore(address, port, world, False, timeout)
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place)
    listener.listen(_BACKLOG)
    port = int(listener.getsockname()[1])
    return TCPStore(address, port, world, True, timeout, master_listen_fd=listener.detach())


def use_own_gpu(device: str) -> None:
    """With "cuda": the GPU of torchrun's local rank."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def gather_json(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """`value` of every rank, plain JSON types, in rank order, on every rank. A collective.

    torch's `all_gather_object` unpickles what a peer sends. `group` needs a back end for the CPU;
    the default is all ranks. Tuples arrive as lists.
    """
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return [
        json.loads(part[: int(size)].numpy().tobytes())
        for part, size in zip(parts, sizes, strict=True)
    ]


def broadcast_json(value: T) -> T:
    """Rank 0's `value`, plain JSON types, on every rank. A collective; tuples arrive as lists."""
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([len(data)])
    dist.broadcast(size, src=0)
    body = data if dist.get_rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(body, src=0)
    return cast(T, json.loads(body.numpy().tobytes()))


def from_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, plain JSON types, on every rank: a collective. A PasskError
    that it raises there is raised on all ranks."""
    answer: dict[str, object] = {}
    if dist.get_rank() == 0:
        try:
            answer = {"value": work()}
        except PasskError as error:
            broadcast_json({"error": type(error).__name__, "message": str(error)})
            raise
    answer = broadcast_json(answer)
    if "error" in answer:
        raise _error_named(str(answer["error"]))(answer["message"])
    return cast(T, answer["value"])


def _error_named(name: str) -> type[PasskError]:
    """The PasskError of this name that this process has imported, else PasskError."""
    kinds = [PasskError]
    for kind in kinds:
        if kind.__name__ == name:
            return kind
        kinds += kind.__subclasses__()
    return PasskError
