"""One process group of all ranks of both sides, besides each side's own.

torchrun's first ranks are the trainers, its last `rollout.dedicated_ranks` the engines; on the
bridge every rank keeps torchrun's number.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import GroupName

from passk_fast.disaggregated import store_watch
from passk_fast.disaggregated.store_watch import StoreWatch
from passk_fast.errors import LostRankError
from passk_fast.process_group import BACKENDS, join_store, use_own_gpu
from passk_fast.weights.mesh import RolloutMesh

_NAME = "bridge"
_PATIENCE = 10
"""An idle rollout rank waits this many time-outs for a request: a warm start or a step of training
lies between two of them. A rank that dies is noticed at once, by its closed connection; an
unplugged host after one time-out, because the store does not answer."""
_LOOKS = 20
"""How often per time-out an idle rank checks whether the store has answered."""


@dataclass(frozen=True)
class Bridge:
    """Bytes and weights between the sides."""

    group: dist.ProcessGroup
    rank: int
    """torchrun's."""
    num_trainers: int
    num_rollouts: int
    timeout: timedelta
    watch: StoreWatch | None = None
    """A rollout rank's: whether the host of trainer rank 0 is there."""

    @property
    def is_rollout(self) -> bool:
        return self.rank >= self.num_trainers

    @property
    def rollout_ranks(self) -> range:
        return range(self.num_trainers, self.num_trainers + self.num_rollouts)

    def rollout_mesh(self, tensor: int) -> RolloutMesh:
        """Where engines of `tensor` ranks each stand on the bridge."""
        return RolloutMesh(world=self.num_rollouts, tensor=tensor, first_rank=self.num_trainers)

    def name(self, rank: int) -> str:
        """Example: "trainer rank 0"."""
        return f"{'trainer' if rank < self.num_trainers else 'rollout'} rank {rank}"

    def send(self, messages: dict[int, bytes]) -> None:
        """Bytes to ranks of the other side; returns when all are taken. LostRankError."""
        for peer, data in messages.items():
            size = torch.tensor([len(data)])
            body = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            for part in (size, body):
                self._wait(self._isend, part, peer, self.timeout * _PATIENCE)

    def receive(self, peer: int, *, idle: bool = False) -> bytes:
        """What `peer` sends next; `idle`: it may be long until then. LostRankError."""
        patience = self.timeout * (_PATIENCE if idle else 1)
        size = torch.zeros(1, dtype=torch.int64)
        self._wait(self._irecv, size, peer, patience)
        body = torch.empty(int(size), dtype=torch.uint8)
        self._wait(self._irecv, body, peer, self.timeout)
        return body.numpy().tobytes()

    def _isend(self, part: torch.Tensor, peer: int) -> dist.Work | None:
        return dist.isend(part, group=self.group, group_dst=peer)

    def _irecv(self, part: torch.Tensor, peer: int) -> dist.Work | None:
        return dist.irecv(part, group=self.group, group_src=peer)

    def _wait(
        self,
        start: Callable[[torch.Tensor, int], dist.Work | None],
        part: torch.Tensor,
        peer: int,
        patience: timedelta,
    ) -> None:
        try:
            work = start(part, peer)
            assert work is not None, "this rank is on the bridge"
            if self.watch is None or patience <= self.timeout:
                work.wait(patience)
            else:
                self._wait_and_watch(work, patience, self.watch)
        except RuntimeError as error:
            raise LostRankError(
                f"{self.name(self.rank).capitalize()} has lost {self.name(peer)}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _wait_and_watch(self, work: dist.Work, patience: timedelta, watch: StoreWatch) -> None:
        """`work.wait`, given up when the store falls silent; RuntimeError."""
        found: Future[None] = Future()

        def wait() -> None:
            try:
                work.wait(patience)
                found.set_result(None)
            except RuntimeError as error:
                found.set_exception(error)

        threading.Thread(target=wait, name="bridge-wait", daemon=True).start()
        start = time.monotonic()
        while not concurrent.futures.wait([found], watch.timeout_s / _LOOKS).done:
            if watch.silent(start):
                raise RuntimeError(f"its host has not answered for {watch.timeout_s:g} s")
        found.result()


def join(device: str, timeout_s: int, num_rollouts: int) -> Bridge:
    """Make this side's default process group and the bridge; all ranks of the job call it.

    From here on RANK and WORLD_SIZE are this side's, which vLLM reads.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout, trainers = timedelta(seconds=timeout_s), world - num_rollouts
    is_rollout = rank >= trainers
    use_own_gpu(device)
    store = join_store(rank, world, timeout)
    name, first, size = (
        ("rollout", trainers, num_rollouts) if is_rollout else ("trainer", 0, trainers)
    )
    dist.init_process_group(
        BACKENDS[device],
        store=PrefixStore(name, store),
        rank=rank - first,
        world_size=size,
        timeout=timeout,
    )
    os.environ.update(RANK=str(rank - first), WORLD_SIZE=str(size))
    group = _bridge_group(BACKENDS[device], PrefixStore(_NAME, store), rank, world, timeout)
    watch = StoreWatch(cast(store_watch.Store, store), timeout) if is_rollout else None
    # NCCL: the first exchange over a group must be everyone's.
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    return Bridge(group, rank, trainers, num_rollouts, timeout, watch)


def _bridge_group(
    backend: str, store: Store, rank: int, world: int, timeout: timedelta
) -> dist.ProcessGroup:
    """A group that is wider than the default one, which `new_group` cannot make."""
    group: dist.ProcessGroup
    group, _ = distributed_c10d._new_process_group_helper(
        world, rank, [], dist.Backend(backend), store, group_name=GroupName(_NAME), timeout=timeout
    )
    distributed_c10d._world.pg_group_ranks[group] = {r: r for r in range(world)}
    return group
