"""All ranks of both sides in one process group beside each side's own.

torchrun's first ranks are the trainers, its last `rollout.ranks` the engines; on the bridge
everyone keeps torchrun's rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from passk_fast.distributed import BACKENDS, use_own_gpu
from passk_fast.errors import LostRankError
from passk_fast.weights.mesh import RolloutMesh

_NAME = "bridge"
_PATIENCE = 10
"""An idle rollout rank waits this many time-outs for an order: a warm start or a step of training
lies between two of them. A rank that dies is noticed at once, by its closed connection."""


@dataclass(frozen=True)
class Bridge:
    """Bytes and weights between the sides."""

    group: dist.ProcessGroup
    rank: int
    """torchrun's."""
    num_trainers: int
    num_rollouts: int
    timeout: timedelta

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
                self._wait(dist.isend, part, peer, self.timeout * _PATIENCE)

    def receive(self, peer: int, *, idle: bool = False) -> bytes:
        """What `peer` sends next; `idle`: nothing may come for long. LostRankError."""
        patience = self.timeout * (_PATIENCE if idle else 1)
        size = torch.zeros(1, dtype=torch.int64)
        self._wait(dist.irecv, size, peer, patience)
        body = torch.empty(int(size), dtype=torch.uint8)
        self._wait(dist.irecv, body, peer, self.timeout)
        return body.numpy().tobytes()

    def _wait(self, call: object, part: torch.Tensor, peer: int, patience: timedelta) -> None:
        where = "group_dst" if call is dist.isend else "group_src"
        try:
            work = call(part, group=self.group, **{where: peer})  # type: ignore[operator]
            work.wait(patience)
        except RuntimeError as error:
            raise LostRankError(
                f"{self.name(self.rank).capitalize()} has lost {self.name(peer)}: "
                f"{str(error).splitlines()[0]}"
            ) from error


def join(device: str, timeout_s: int, num_rollouts: int) -> Bridge:
    """Make this side's default process group and the bridge; all ranks of the job call it.

    From here on RANK and WORLD_SIZE are this side's, which vLLM reads.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout, trainers = timedelta(seconds=timeout_s), world - num_rollouts
    is_rollout = rank >= trainers
    use_own_gpu(device)
    store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timeout))
    name, first, size = (
        ("rollout", trainers, num_rollouts) if is_rollout else ("trainer", 0, trainers)
    )
    dist.init_process_group(
        BACKENDS[device],
        store=dist.PrefixStore(name, store),
        rank=rank - first,
        world_size=size,
        timeout=timeout,
    )
    os.environ.update(RANK=str(rank - first), WORLD_SIZE=str(size))
    group = _group_beside(BACKENDS[device], dist.PrefixStore(_NAME, store), rank, world, timeout)
    # NCCL: the first exchange over a group must be everyone's.
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    return Bridge(group, rank, trainers, num_rollouts, timeout)


def _group_beside(
    backend: str, store: dist.Store, rank: int, world: int, timeout: timedelta
) -> dist.ProcessGroup:
    """A group that is wider than the default one, which `new_group` cannot make."""
    group, _ = distributed_c10d._new_process_group_helper(
        world, rank, [], dist.Backend(backend), store, group_name=_NAME, timeout=timeout
    )
    distributed_c10d._world.pg_group_ranks[group] = {r: r for r in range(world)}
    return group
