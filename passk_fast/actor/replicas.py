"""Replicas of the weights: data- and context-parallel ranks must hold the same bits."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.actor.mesh import Mesh
from passk_fast.errors import DivergedError


def check_replicas(parameters: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Compare a checksum of every weight with those of its replicas. A collective over all ranks.

    The checksum is the sum of a weight's bits, read as integers of its elements' size: equal bits
    give equal sums, and one changed element another one. An expert's replicas are the ranks of its
    own data-parallel group. Costs one pass over the weights and a few bytes for each.

    Raises:
        DivergedError: on every rank; it names ranks, and each of them prints its first weight that
            is not its replicas'.
    """
    wrong = ""
    for expert, group in ((False, mesh.replica_group), (True, mesh.expert_replica_group)):
        names = [n for n, p in parameters.items() if _is_expert(p) == expert]
        if not names or dist.get_world_size(group) == 1:
            continue
        sums = torch.stack([_checksum(parameters[name]) for name in names])
        everyone = [torch.empty_like(sums) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, sums, group=group)
        # The value that most replicas have is taken for the right one; of two, the first rank's.
        usual = torch.stack(everyone).mode(dim=0).values
        if len(everyone) == 2:
            usual = everyone[0]
        off = (sums != usual).nonzero().flatten().tolist()
        if off and not wrong:
            wrong = names[off[0]]
    flags = torch.zeros(mesh.world_size, dtype=torch.int64, device=mesh.torch_device)
    flags[mesh.rank] = bool(wrong)
    dist.all_reduce(flags)
    if wrong:
        said = f"rank {mesh.rank}: weight {wrong} is not what its replicas on other ranks hold"
        print(said, file=sys.stderr, flush=True)
    ranks = flags.nonzero().flatten().tolist()
    if ranks:
        raise DivergedError(
            f"The weights of rank {', '.join(map(str, ranks))} are not those of their replicas "
            "(parallel.check_replicas_every): memory or a link is at fault, or a step was computed "
            "differently. Check that host, and resume from the newest checkpoint."
        )


def _is_expert(parameter: Tensor) -> bool:
    """Megatron marks parameters whose gradients the whole data-parallel group does not reduce."""
    return not getattr(parameter, "allreduce", True)


def _checksum(parameter: Tensor) -> Tensor:
    """int64 scalar."""
    kind = {2: torch.int16, 4: torch.int32}[parameter.element_size()]
    return parameter.detach().view(kind).sum(dtype=torch.int64)
