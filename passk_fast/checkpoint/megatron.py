"""Megatron's sharded state in a checkpoint folder: any TP x PP x DP writes it, any other reads it.

`CheckpointStore` makes folders complete or absent; this file fills and reads one. `state.json`
holds what is not a tensor: the step, the data position, the schedule. Sampling, data order and
initialisation are functions of (seed, step), so these numbers are the whole random state.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from passk_fast.actor.actor import Actor
from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.checkpoint.damage import damage
from passk_fast.checkpoint.optimizer_state import main_weight, state_held_once
from passk_fast.checkpoint.store import disk_error_of, disk_errors
from passk_fast.checkpoint.streaming import StreamingStrategy
from passk_fast.errors import DiskError
from passk_fast.patch import Patch

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict
    from megatron.core.optimizer.optimizer import MegatronOptimizer
    from megatron.core.transformer.module import MegatronModule


_ERRNO = re.compile(r"\[Errno (\d+)\]")


def _metadata() -> dict[str, object]:
    """Optimizer state is gathered on data-parallel rank 0, in model space: loadable under any mesh.

    A fresh one every time: Megatron keeps the mesh's groups in it.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable"}


def _unwrap(chunk: MegatronModule) -> MegatronModule:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    parts: list[MegatronOptimizer] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts


def _torch_adams(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The parts of Megatron's optimizer that step with torch's Adam (AdamW is one too)."""
    return [part for part in _parts(optimizer) if isinstance(part.optimizer, torch.optim.Adam)]


def _distributed_parts(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    return [part for part in _parts(optimizer) if isinstance(part, DistributedOptimizer)]


def _materialize_adam(optimizer: MegatronOptimizer) -> None:
    """Give torch's Adam its state before the first step: Megatron reads its `step`."""
    for part in _torch_adams(optimizer):
        inner = part.optimizer
        for group in inner.param_groups:
            for p in group["params"]:
                if not inner.state[p]:
                    inner.state[p]["step"] = torch.zeros(())
                    inner.state[p]["exp_avg"] = torch.zeros_like(p.data)
                    inner.state[p]["exp_avg_sq"] = torch.zeros_like(p.data)


@contextmanager
def completed(part: MegatronOptimizer) -> Iterator[None]:
    """Megatron's distributed optimizer looks for Adam's `step`, and for main weights, among the
    loaded tensors.

    A fused Adam keeps the step in the parameter group, torch's Adam in each parameter's state; main
    weights in float32 are those of the model, which are loaded. Inside, the optimizer's loading
    finds both as they are.
    """
    load = part._set_main_param_and_optimizer_states

    def load_completed(
        model_param: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        main = main_weight(part, model_param)
        kept = {"param": main.detach()} | part.optimizer.state.get(main, {})
        names = ("param", "step")
        load(model_param, {name: kept[name] for name in names if name in kept} | dict(tensors))

    part._set_main_param_and_optimizer_states = load_completed
    try:
        yield
    finally:
        del part._set_main_param_and_optimizer_states  # shadowed the class's method


def _load_optimizer(optimizer: MegatronOptimizer, state: ShardedStateDict) -> None:
    """Load; afterwards every parameter has a `step` of its own.

    Megatron hands one `step` tensor to all parameters, which torch's Adam would then advance once
    for each of them.
    """
    with ExitStack() as loading:
        for part in _distributed_parts(optimizer):
            loading.enter_context(completed(part))
        optimizer.load_state_dict(state)
    for part in _torch_adams(optimizer):
        for adam_state in part.optimizer.state.values():
            adam_state["step"] = adam_state["step"].clone()


def _sharded_state(actor: Actor, *, is_loading: bool) -> ShardedStateDict:
    chunks = [_unwrap(chunk) for chunk in actor.chunks]
    state: ShardedStateDict = {}
    for i, chunk in enumerate(chunks):
        state["model" if len(chunks) == 1 else f"model{i}"] = chunk.sharded_state_dict(
            metadata=_metadata()
        )
    model_state = dict(state)
    with ExitStack() as stack:
        for part in _distributed_parts(actor.optimizer):
            stack.enter_context(state_held_once(part))
        state["optimizer"] = actor.optimizer.sharded_state_dict(
            model_state["model"] if len(chunks) == 1 else model_state,
            is_loading=is_loading,
            metadata=_metadata(),
        )
    return state


@contextmanager
def disk_errors_of_ranks(folder: Path) -> Iterator[None]:
    """Turn what Megatron makes of a rank's full or failing disk into DiskError; others pass.

    It hands the text of the rank's error to rank 0, in an exception that names none.
    """
    try:
        yield
    except CheckpointException as error:
        for rank, (failure, _) in sorted(error.failures.items()):
            number = _ERRNO.search(str(failure))
            disk_error = disk_error_of(int(number[1]), folder) if number else None
            if disk_error is not None:
                raise DiskError(f"rank {rank}: {disk_error}") from error
        raise


def write(actor: Actor, folder: Path, extra: Mapping[str, object]) -> None:
    """Write model, optimizer and `extra` (JSON values) into an existing folder. A collective.

    DiskError, on rank 0 at least, where a rank finds the disk full, read-only or failing.
    """
    with (
        megatron_scope(actor.mesh.device),
        warnings.catch_warnings(),
        disk_errors(folder),
        disk_errors_of_ranks(folder),
    ):
        warnings.simplefilter("ignore")
        _materialize_adam(actor.optimizer)  # where no step has had anything to train
        state = _sharded_state(actor, is_loading=False)
        dist_checkpointing.save(
            state, str(folder), StreamingStrategy(), validate_access_integrity=False
        )
    if actor.mesh.rank == 0:
        with disk_errors(folder):
            (folder / "state.json").write_text(json.dumps(dict(extra), sort_keys=True, indent=1))
    dist.barrier()


def read(actor: Actor, folder: Path) -> dict[str, Any]:
    """Load a verified folder into the actor; returns what `write` got as `extra`. A collective.

    CorruptCheckpointError where the folder does not hold the actor's tensors.
    """
    with megatron_scope(actor.mesh.device), warnings.catch_warnings(), damage(folder):
        warnings.simplefilter("ignore")
        _materialize_adam(actor.optimizer)
        loaded = _load(_sharded_state(actor, is_loading=True), folder)
        chunks = [_unwrap(chunk) for chunk in actor.chunks]
        for i, chunk in enumerate(chunks):
            chunk.load_state_dict(loaded["model" if len(chunks) == 1 else f"model{i}"])
        _load_optimizer(actor.optimizer, loaded["optimizer"])
        extra: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return extra


def read_weights(chunks: Sequence[MegatronModule], folder: Path, device: str) -> None:
    """Load the model alone, without an optimizer, from a verified folder. A collective.

    `chunks` are the model's one chunk. CorruptCheckpointError as `read`.
    """
    with megatron_scope(device), warnings.catch_warnings(), damage(folder):
        warnings.simplefilter("ignore")
        (chunk,) = chunks
        state = {"model": chunk.sharded_state_dict(metadata=_metadata())}
        chunk.load_state_dict(_load(state, folder)["model"])


def _load(state: ShardedStateDict, folder: Path) -> ShardedStateDict:
    """The tensors that `state` asks for, and what is not a tensor."""
    return dist_checkpointing.load(
        state, str(folder), validate_access_integrity=False, strict="assume_ok_unexpected"
    )


_TEST = "tests/checkpoint/test_megatron.py"

PATCHES = (
    Patch(
        function="passk_fast.checkpoint.megatron.completed",
        targets=(
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"
            "._set_main_param_and_optimizer_states",
        ),
        scope="one optimizer, while a checkpoint is read; ends with it",
        breaks="Megatron renames the method, or loads other keys into an optimizer.",
        test=_TEST,
    ),
    Patch(
        function="passk_fast.checkpoint.optimizer_state.state_held_once",
        targets=(
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"
            ".sharded_param_state_fully_reshardable",
        ),
        scope="one optimizer, while a checkpoint is written or read; ends with it",
        breaks="Megatron renames the method, its ranges of parameters, or the keys it loads.",
        test=_TEST,
    ),
)
