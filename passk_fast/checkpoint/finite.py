"""Refuses to save a model that has diverged: NaN or inf in weights or in the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from passk_fast.actor.actor import Actor
from passk_fast.actor.finite import found_by_rank, names_not_finite
from passk_fast.checkpoint.optimizer_state import main_weight
from passk_fast.errors import DivergedError
from passk_fast.weights.megatron import named_parameters

if TYPE_CHECKING:
    from megatron.core.optimizer.optimizer import MegatronOptimizer


def check_finite(actor: Actor, step: int) -> None:
    """Look at every tensor that this rank holds. A collective: all ranks raise together.

    Raises:
        DivergedError: a rank holds NaN or inf; the message names the parameter and the rank.
    """
    found = found_by_rank(next(iter(names_not_finite(named_tensors(actor))), ""))
    if found is None:
        return
    rank, name = found
    raise DivergedError(
        f"After step {step} {name} on rank {rank} holds NaN or inf, so no checkpoint is written. "
        "Older ones are intact. Look at grad_norm, loss and lr in metrics.jsonl before that step, "
        "and take a lower optim.lr or optim.grad_clip."
    )


def named_tensors(actor: Actor) -> Iterator[tuple[str, Tensor]]:
    """What this rank's part of a checkpoint is made from: weights, main weights where these are
    others, and Adam's moments."""
    parameters = named_parameters(actor.chunks)
    for name, parameter in parameters.items():
        yield f"the weight {name}", parameter
    for part in actor.optimizer.chained_optimizers:
        for name, parameter in parameters.items():
            main = _main_of(part, parameter)
            if main is None:
                continue
            if parameter.dtype != torch.float32:
                yield f"the main weight of {name}", main
            for key, tensor in part.optimizer.state.get(main, {}).items():
                if isinstance(tensor, Tensor):
                    yield f"{key} of {name}", tensor


def _main_of(part: MegatronOptimizer, parameter: torch.nn.Parameter) -> Tensor | None:
    """What a part of the optimizer updates for a parameter; None where it does not on this rank."""
    if isinstance(part, DistributedOptimizer):
        known = parameter in part.model_param_group_index_map
        return main_weight(part, parameter) if known else None
    own: Tensor | None = getattr(parameter, "main_param", None)
    main = parameter if own is None else own
    return main if main in part.optimizer.state else None
