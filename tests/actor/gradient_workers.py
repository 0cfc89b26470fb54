"""What the ranks of the gradient tests run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.weights.megatron import named_parameters
from tests.actor.workers import build, make_sequences

HUGE = 3e38
"""Finite in float32, and twice it is not."""
SPOILS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda gradient: gradient * math.nan,
    "inf": lambda gradient: gradient.fill_(math.inf),
    "huge": lambda gradient: gradient.fill_(HUGE),
}


def located(
    kind: str, folder: str, parallel: dict[str, Any], spoil: str, bad_ranks: list[int], number: int
) -> tuple[str, str, bool, float]:
    """(what is said, what ought to be, applied, largest change of a weight) of a step in which the
    gradient of one parameter (of each bad rank's list, by number) is spoilt."""
    actor = build(kind, folder, parallel)
    before = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    name, parameter = list(named_parameters(actor.chunks).items())[number]
    if dist.get_rank() in bad_ranks:
        parameter.register_hook(SPOILS[spoil])
    result = actor.policy_step(actor.pack(make_sequences()), denominator=100.0, lr=1e-2)
    change = max(
        float((tensor - before[name]).abs().max()) for name, tensor in actor.full_tensors()
    )
    names = [""] * dist.get_world_size()
    dist.all_gather_object(names, name)
    want = f"the gradient of {names[bad_ranks[0]]} on rank {bad_ranks[0]}"
    return result.bad_gradient, want, result.applied, change


def nan_loss(kind: str, folder: str, bad_rank: int) -> str:
    """What is said of a step in which one rank has NaN advantages."""
    actor = build(kind, folder, {})
    batches = actor.pack(make_sequences())
    if dist.get_rank() == bad_rank:
        batches[0].advantages_T[batches[0].mask_T] = math.nan
    said: str = actor.policy_step(batches, denominator=100.0, lr=1e-2).bad_gradient
    return said


def limited(kind: str, folder: str, parallel: dict[str, Any]) -> dict[str, bool]:
    """What holds of steps with a largest norm."""
    actor = build(kind, folder, parallel)
    start = _state(actor)
    norm = _step(actor, math.inf).grad_norm
    stepped = _state(actor)

    actor = build(kind, folder, parallel)
    below = _step(actor, norm * 0.999)
    kept = _same(_state(actor), start)
    above = _step(actor, norm * 1.001)
    return {
        "not applied below the norm": not below.applied,
        "the norm is reported": below.grad_norm == norm == above.grad_norm,
        "nothing has moved": kept,
        "applied above the norm": above.applied,
        "as without a limit, bit for bit": _same(_state(actor), stepped),
    }


def _step(actor: Any, largest_norm: float) -> Any:
    batches = actor.pack(make_sequences())
    return actor.policy_step(batches, denominator=100.0, lr=1e-2, largest_norm=largest_norm)


def _state(actor: Any) -> dict[str, Tensor]:
    """Copies of this rank's weights and moments; a moment before the first step is zero."""
    state = {name: tensor.detach().clone() for name, tensor in actor.parameters().items()}
    for i, part in enumerate(actor.optimizer.chained_optimizers):
        for j, parameter in enumerate(part.get_parameters()):
            for key in ("exp_avg", "exp_avg_sq"):
                moment = part.optimizer.state[parameter].get(key, torch.zeros_like(parameter))
                state[f"{i} {j} {key}"] = moment.detach().clone()
    return state


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
