"""The distributed optimizer's tensors as a checkpoint holds them: whole, and each of them once.

Megatron gathers the state of all parameters on every data-parallel rank, several copies at a time.
Here one rank's state stays where it is, and with more of them each writes its share of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer, Range

    _Sharded: TypeAlias = ShardedTensor | ShardedTensorFactory
    _State: TypeAlias = dict[int, dict[str, _Sharded]]


@contextmanager
def state_held_once(part: DistributedOptimizer) -> Iterator[None]:
    """Megatron's distributed optimizer copies all of its state several times for a checkpoint.

    Inside, it describes the same tensors without copies, and leaves out the main weights that are
    the model's own.
    """

    def described(
        model_state: ShardedStateDict,
        is_loading: bool = False,
        metadata: Mapping[str, object] | None = None,
    ) -> _State:
        return _described(part, model_state, is_loading=is_loading)

    part.sharded_param_state_fully_reshardable = described
    try:
        yield
    finally:
        del part.sharded_param_state_fully_reshardable  # shadowed the class's method


def main_weight(part: DistributedOptimizer, parameter: torch.nn.Parameter) -> Tensor:
    """The optimizer's part, 1-D, of a parameter that this rank updates a part of."""
    group, order = part.model_param_group_index_map[parameter]
    weight: Tensor = part.optimizer.param_groups[group]["params"][order]
    return weight


def _described(
    part: DistributedOptimizer, model_state: ShardedStateDict, *, is_loading: bool
) -> _State:
    """Parameter by parameter, in the order in which Megatron loads them."""
    tensors, _ = extract_sharded_tensors_and_factories(model_state)
    by_parameter: dict[Tensor, _Sharded] = {s.data: s for s in nested_values(tensors)}
    out: _State = {}
    for buffer, by_type in zip(part.buffers, part.gbuf_ranges, strict=True):
        (buckets,) = by_type.values()
        ranges = {p: r["param"] for bucket in buckets for p, r in bucket["param_map"].items()}
        for parameter in buffer.param_index_map:
            owner = len(out) % part.data_parallel_group.size()
            state = _local(part, parameter) if parameter in ranges else {}
            whole = _whole(part, parameter, state, ranges.get(parameter), owner, is_loading)
            model = by_parameter[parameter]
            out[len(out)] = {
                key: _like(model, f"optimizer.state.{key}.{model.key}", tensor, owner, part)
                for key, tensor in whole.items()
            }
    return out


def _keys(parameter: torch.nn.Parameter) -> tuple[str, ...]:
    """Main weights in float32 share the memory of a float32 model."""
    moments = ("exp_avg", "exp_avg_sq")
    return moments if parameter.dtype == torch.float32 else ("param", *moments)


def _local(part: DistributedOptimizer, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
    found: dict[str, Tensor] = part._get_main_param_and_optimizer_states(parameter)
    return {key: found[key].detach() for key in _keys(parameter)}


def _whole(
    part: DistributedOptimizer,
    parameter: torch.nn.Parameter,
    state: dict[str, Tensor],
    place: Range | None,
    owner: int,
    is_loading: bool,
) -> dict[str, Tensor]:
    """The state of a whole parameter, in its shape: real on `owner`, or room to load it into.

    `place` is where `state` lies in the flat parameter; None where this rank has no part of it.
    """
    group = part.data_parallel_group
    if group.size() == 1:
        return {key: tensor.view(parameter.shape) for key, tensor in state.items()}
    out = {}
    for key in _keys(parameter):
        if is_loading:
            out[key] = torch.empty(parameter.shape, dtype=torch.float32)
            continue
        flat = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if place is not None:
            flat[place.start : place.end] = state[key]
        # Every element comes from one rank: the sum of its bits with zeros is exact.
        dist.reduce(flat.view(torch.int32), dist.get_global_rank(group, owner), group=group)
        is_mine = group.rank() == owner
        out[key] = (flat.cpu() if is_mine else torch.empty(1).expand(flat.numel())).view(
            parameter.shape
        )
    return out


def _like(
    model: _Sharded, key: str, tensor: Tensor, owner: int, part: DistributedOptimizer
) -> _Sharded:
    """`tensor` placed as the parameter is; the owner, not data-parallel rank 0, writes it."""
    *others, rank = model.replica_id
    group = part.data_parallel_group
    replica = (*others, (rank - owner) % group.size())
    if isinstance(model, ShardedTensorFactory):
        return replace(model, key=key, data=tensor, replica_id=replica)
    return replace(model, key=key, data=tensor, dtype=tensor.dtype, replica_id=replica)
