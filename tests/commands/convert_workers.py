"""What the tests of `passk-fast convert` run on a rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import drop_mesh, make_mesh
from passk_fast.checkpoint import megatron
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.config import ModelConfig
from passk_fast.model.shape import ModelShape
from passk_fast.run.folder import write_config
from tests.actor.workers import make_sequences, run_config


def make_run(folder: str, run: str, dtype: str) -> dict[str, torch.Tensor]:
    """A run folder with a checkpoint after one step; returns the trained weights."""
    drop_mesh()
    model = ModelConfig(path=folder, dtype=dtype)
    config = replace(run_config({}, 4096), output_dir=run, model=model)
    actor = Actor(config, ModelShape.read(Path(folder)), make_mesh(config.parallel, "cpu"))
    actor.load_folder(folder)
    sequences = make_sequences(seed=0)
    denominator = float(sum(s.response_length for s in sequences))
    actor.policy_step(actor.pack(sequences), denominator=denominator, lr=1e-2)
    store = CheckpointStore(Path(run) / "checkpoints", keep=1)
    megatron.write(actor, store.begin(1), {"progress": {"step": 1}})
    store.commit(1)
    write_config(config, Path(folder))
    return {name: tensor.clone() for name, tensor in actor.full_tensors()}
