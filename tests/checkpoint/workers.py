"""What the checkpoint tests run on ranks."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from torch.distributed.checkpoint.filesystem import FileSystem

from passk_fast.checkpoint import megatron
from passk_fast.checkpoint.finite import check_finite, named_tensors
from passk_fast.checkpoint.manifest import CorruptCheckpointError
from passk_fast.config import ModelConfig
from passk_fast.errors import DiskError, DivergedError
from passk_fast.process_group import from_rank_0
from tests.actor.workers import make_sequences, model_shape, run_config, train_steps


def error_on_a_full_disk(kind: str, folder: str, parallel: dict[str, Any], save: str) -> str:
    """What writing a checkpoint says where the disk is full when a file is flushed."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", full):
        try:
            train_steps(kind, folder, parallel, 1, save=save)
        except DiskError as error:
            return str(error)
    return ""


def stored_keys(kind: str, folder: str, dtype: str) -> tuple[set[str], bool]:
    """(kinds of optimizer tensors that a checkpoint gets, whether any is a copy)."""
    from passk_fast.actor.cpu.megatron_shim import megatron_scope
    from passk_fast.checkpoint.optimizer_state import state_held_once

    actor = typed_actor(kind, folder, dtype)
    (part,) = actor.optimizer.chained_optimizers
    held = {t.data_ptr() for state in part.optimizer.state.values() for t in state.values()}
    held |= {p.data_ptr() for group in part.optimizer.param_groups for p in group["params"]}
    with megatron_scope("cpu"), state_held_once(part):
        model = actor.chunks[0].module.sharded_state_dict()
        state = part.sharded_param_state_fully_reshardable(model)
    keys = {key for of_parameter in state.values() for key in of_parameter}
    stored = {s.data.data_ptr() for of_parameter in state.values() for s in of_parameter.values()}
    return keys, not stored <= held


def typed_actor(kind: str, folder: str, dtype: str, **parallel: Any) -> Any:
    """An actor of a data type after one step."""
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    warnings.simplefilter("ignore")
    drop_mesh()
    config = replace(run_config(parallel, 4096), model=ModelConfig(dtype=dtype))
    actor = Actor(config, model_shape(kind), make_mesh(config.parallel, "cpu"))
    actor.load_folder(folder)
    _step(actor)
    return actor


def _step(actor: Any) -> None:
    assert actor.policy_step(actor.pack(make_sequences()), denominator=100.0, lr=1e-2).applied


def resumed_differs(kind: str, folder: str, dtype: str, save: str, *, old: bool) -> bool:
    """Whether a step after saving and loading differs from one without; `old` is the form of a
    checkpoint that Megatron's own writer made."""
    actor = typed_actor(kind, folder, dtype)
    with ExitStack() as stack:
        if old:
            stack.enter_context(mock.patch.object(megatron, "_distributed_parts", return_value=[]))
            stack.enter_context(
                mock.patch.object(megatron, "StreamingStrategy", get_default_save_sharded_strategy)
            )
        megatron.write(actor, Path(save), {})
    _step(actor)
    want = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    actor = typed_actor(kind, folder, dtype)
    _step(actor)  # another state than the saved one
    megatron.read(actor, Path(save))
    _step(actor)
    got = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    return any(not torch.equal(got[name], want[name]) for name in want)


CONTENTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a tensor missing": (".metadata", lambda f: _without_tensor(f, "decoder.layers.")),
    "a moment missing": (".metadata", lambda f: _without_tensor(f, "optimizer.state.exp_avg.")),
    "a tensor's shape": (".metadata", lambda f: _with_other_shape(f, "decoder.final_layernorm.")),
    "index of bytes": (".metadata", lambda f: (f / ".metadata").write_bytes(b"nothing")),
    "index a list": (".metadata", lambda f: (f / ".metadata").write_bytes(pickle.dumps([1]))),
    "no index": (".metadata", lambda f: (f / ".metadata").unlink()),
    "common of bytes": ("common.pt", lambda f: (f / "common.pt").write_bytes(b"nothing")),
    "common of nothing": ("common.pt", lambda f: torch.save({}, f / "common.pt")),
    "common a list": ("common.pt", lambda f: torch.save([1], f / "common.pt")),
    "no common": ("common.pt", lambda f: (f / "common.pt").unlink()),
    "format of bytes": ("metadata.json", lambda f: (f / "metadata.json").write_bytes(b"{")),
    "format a list": ("metadata.json", lambda f: (f / "metadata.json").write_text("[]")),
    "shards of zeros": ("__0_0.distcp", lambda f: _shards(f, lambda data: bytes(len(data)))),
    "shards cut": ("__0_0.distcp", lambda f: _shards(f, lambda data: data[: len(data) // 3])),
    "no state": ("state.json", lambda f: (f / "state.json").unlink()),
    "state of bytes": ("state.json", lambda f: (f / "state.json").write_bytes(b"{")),
}
"""Kind -> (file to be named, what someone may have put into a checkpoint)."""


def _without_tensor(folder: Path, name: str) -> None:
    """Take the first tensor whose name begins so out of the index."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    key = _key(index, name)
    del index.state_dict_metadata[key]
    for place in [place for place in index.storage_data if place.fqn == key]:
        del index.storage_data[place]
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def _key(index: Any, name: str) -> str:
    """The first tensor whose name begins so."""
    return next(key for key in index.state_dict_metadata if key.startswith(name))


def _with_other_shape(folder: Path, name: str) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    entry = index.state_dict_metadata[_key(index, name)]
    entry.size = torch.Size([size + 1 for size in entry.size])
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def _shards(folder: Path, change: Callable[[bytes], bytes]) -> None:
    for file in folder.glob("*.distcp"):
        file.write_bytes(change(file.read_bytes()))


def refusals(kind: str, folder: str, parallel: dict[str, Any], root: str) -> dict[str, str]:
    """What reading says of a checkpoint with each of CONTENTS, written and sealed anew."""
    from tests.actor.workers import build

    train_steps(kind, folder, parallel, 1, save=str(_made(Path(root) / "whole")))
    said = {}
    for name, (_, put) in CONTENTS.items():
        copy = Path(root) / name
        if dist.get_rank() == 0:
            shutil.copytree(Path(root) / "whole", copy)
            put(copy)
        dist.barrier()
        actor = build(kind, folder, parallel)
        try:
            megatron.read(actor, copy)
            said[name] = "read"
        except CorruptCheckpointError as error:
            said[name] = str(error)
        dist.barrier()
    return said


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def found_not_finite(
    kind: str, folder: str, dtype: str, parallel: dict[str, Any], bad: float
) -> list[tuple[str, str, str]]:
    """(kind of tensor and rank, what should be said, what the check says) after one value of the
    last tensor of each kind is lost on each rank in turn; first with all of them as they should."""
    actor = typed_actor(kind, folder, dtype, **parallel)
    found = [("nothing", "", _said(actor))]
    for key in ("the weight", "the main weight", "exp_avg of", "exp_avg_sq of"):
        named = [(name, tensor) for name, tensor in named_tensors(actor) if name.startswith(key)]
        for bad_rank in range(dist.get_world_size() if named else 0):
            name, tensor = named[-1]
            value = tensor.data.view(-1)[-1]
            kept = value.clone()
            if dist.get_rank() == bad_rank:
                value.fill_(bad)
            names = [""] * dist.get_world_size()
            dist.all_gather_object(names, name)
            want = f"After step 7 {names[bad_rank]} on rank {bad_rank} holds NaN or inf"
            found.append((f"{key} {bad_rank}", want, _said(actor)))
            value.copy_(kept)
    return found


def _said(actor: Any) -> str:
    try:
        check_finite(actor, 7)
    except DivergedError as error:
        return str(error)
    return ""


def open_file_error(kind: str, folder: str, save: str) -> str:
    """What writing says where the disk fills up in the middle of a tensor."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def create_stream(*_: object) -> Iterator[io.BytesIO]:
        yield Full()

    actor = typed_actor(kind, folder, "float32")
    with mock.patch.object(FileSystem, "create_stream", create_stream):
        try:
            megatron.write(actor, Path(save), {})
        except DiskError as error:
            return str(error)
    return ""


def what_rank_0_does(fails: bool) -> tuple[str, str]:
    """(what `from_rank_0` returns, the error it raises) on this rank."""
    done: list[int] = []

    def work() -> str:
        done.append(dist.get_rank())
        if fails:
            raise CorruptCheckpointError("bad.pt is missing.")
        return f"done by {done}"

    try:
        return from_rank_0(work), ""
    except CorruptCheckpointError as error:
        return "", str(error)
