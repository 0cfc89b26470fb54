"""Megatron's sharded state in a checkpoint folder: any TP x PP x DP writes it, any other reads it.

`CheckpointStore` makes folders complete or absent; this file fills and reads one. `state.json`
holds what is not a tensor: the step, the data position, the schedule. Sampling, data order and
initialisation are functions of (seed, step), so these numbers are the whole random state.
"""

from __future__ import annotations

import json
import queue
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from passk_fast.actor.actor import Actor
from passk_fast.actor.cpu.megatron_shim import megatron_scope


def _metadata() -> dict[str, Any]:
    """Optimizer state is gathered on data-parallel rank 0, in model space: loadable under any mesh.

    A fresh one every time: Megatron keeps the mesh's groups in it.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable"}


def _unwrap(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def _torch_adams(optimizer: Any) -> list[Any]:
    """The parts of Megatron's optimizer that step with torch's Adam (AdamW is one too)."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if isinstance(part.optimizer, torch.optim.Adam)]


def _materialize_adam(optimizer: Any) -> None:
    """Give torch's Adam its state before the first step: Megatron's loading reads its `step`."""
    for part in _torch_adams(optimizer):
        inner = part.optimizer
        for group in inner.param_groups:
            for p in group["params"]:
                if not inner.state[p]:
                    inner.state[p]["step"] = torch.zeros(())
                    inner.state[p]["exp_avg"] = torch.zeros_like(p.data)
                    inner.state[p]["exp_avg_sq"] = torch.zeros_like(p.data)


def _load_optimizer(optimizer: Any, state: Any) -> None:
    """Load, around two places where Megatron expects a fused Adam, which keeps `step` elsewhere:

    its distributed optimizer looks for `step` among the loaded tensors, and hands one `step` tensor
    to all parameters, which torch's Adam would then advance once for each of them.
    """
    for part in _torch_adams(optimizer):
        if not hasattr(part, "_set_main_param_and_optimizer_states"):
            continue

        def keep_step(model_param: Any, tensors: Any, part: Any = part) -> None:
            group, order = part.model_param_group_index_map[model_param]
            main = part.optimizer.param_groups[group]["params"][order]
            step = part.optimizer.state[main]["step"]
            type(part)._set_main_param_and_optimizer_states(
                part, model_param, {**tensors, "step": step}
            )

        part._set_main_param_and_optimizer_states = keep_step
    optimizer.load_state_dict(state)
    for part in _torch_adams(optimizer):
        vars(part).pop("_set_main_param_and_optimizer_states", None)
        for adam_state in part.optimizer.state.values():
            adam_state["step"] = adam_state["step"].clone()


def _sharded_state(actor: Actor, *, is_loading: bool) -> dict[str, Any]:
    chunks = [_unwrap(chunk) for chunk in actor.chunks]
    state: dict[str, Any] = {}
    for i, chunk in enumerate(chunks):
        state["model" if len(chunks) == 1 else f"model{i}"] = chunk.sharded_state_dict(
            metadata=_metadata()
        )
    model_state = dict(state)
    state["optimizer"] = actor.optimizer.sharded_state_dict(
        model_state["model"] if len(chunks) == 1 else model_state,
        is_loading=is_loading,
        metadata=_metadata(),
    )
    return state


def _write_in_process() -> None:
    """Hand Megatron's writer a plain queue; its own lives in a server process, which costs seconds
    to start and outlives a run. Saving is synchronous, so nothing leaves this process."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if getattr(filesystem_async, "_results_queue", None) is None:
        filesystem_async._results_queue = queue.Queue()


def write(actor: Actor, folder: Path, extra: dict[str, Any]) -> None:
    """Write model, optimizer and `extra` (JSON values) into an existing folder. A collective."""
    with megatron_scope(actor.mesh.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = _sharded_state(actor, is_loading=False)
        _write_in_process()
        dist_checkpointing.save(state, str(folder), validate_access_integrity=False)
    if actor.mesh.rank == 0:
        (folder / "state.json").write_text(json.dumps(extra, sort_keys=True, indent=1))
    dist.barrier()


def read(actor: Actor, folder: Path) -> dict[str, Any]:
    """Load a verified folder into the actor; returns what `write` got as `extra`. A collective."""
    with megatron_scope(actor.mesh.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _materialize_adam(actor.optimizer)
        state = _sharded_state(actor, is_loading=True)
        loaded = dist_checkpointing.load(
            state, str(folder), validate_access_integrity=False, strict="assume_ok_unexpected"
        )
        chunks = [_unwrap(chunk) for chunk in actor.chunks]
        for i, chunk in enumerate(chunks):
            chunk.load_state_dict(loaded["model" if len(chunks) == 1 else f"model{i}"])
        _load_optimizer(actor.optimizer, loaded["optimizer"])
    return json.loads((folder / "state.json").read_text())


def read_weights(chunks: list[Any], folder: Path, device: str) -> None:
    """Load the model alone, without an optimizer, from a verified folder. A collective."""
    with megatron_scope(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (chunk,) = chunks
        state = {"model": chunk.sharded_state_dict(metadata=_metadata())}
        loaded = dist_checkpointing.load(
            state, str(folder), validate_access_integrity=False, strict="assume_ok_unexpected"
        )
        chunk.load_state_dict(loaded["model"])
