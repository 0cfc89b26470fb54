"""`passk-fast convert`: a checkpoint of any mesh -> a Hugging Face folder, on one CPU process."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from passk_fast.commands.arguments import take
from passk_fast.config import ParallelConfig, RunConfig
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.process import quiet


def command(arguments: list[str]) -> ExitCode:
    """`RUN_OR_CHECKPOINT OUT [--dtype DTYPE]`."""
    arguments = list(arguments)
    dtype = take(arguments, "--dtype")
    if len(arguments) != 2:
        raise ConfigError(
            "usage: passk-fast convert RUN_OR_CHECKPOINT OUT [--dtype float32|bfloat16|float16]"
        )
    quiet()
    print(f"Wrote {convert(arguments[0], arguments[1], dtype)}")
    return ExitCode.DONE


def convert(source: str, out: str, dtype: str | None = None) -> Path:
    """Write the checkpoint `source` (its folder, or a run folder: the newest good) to `out`.

    Weights are written in `dtype`, by default that of the run (model.dtype), beside the model's
    config and tokenizer files and a model card (README.md) with the run's configuration.
    config.json names the dtype written. The folder appears whole or not at all.

    Raises:
        ConfigError: `source` is neither, `out` exists and is not empty, or no such dtype.
        CorruptCheckpointError: the checkpoint's files do not match its manifest.
        DiskError: `out` cannot be written.
    """
    run, folder = locate(Path(source))  # before what takes seconds to import
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.actor.model import build_chunks
    from passk_fast.checkpoint import megatron as checkpoint
    from passk_fast.checkpoint.manifest import step_of, verify_checkpoint
    from passk_fast.commands.model_card import model_card
    from passk_fast.config.file import load_config
    from passk_fast.model.shape import ModelShape
    from passk_fast.process_group import start_process_group
    from passk_fast.weights.hf import check_new, dtype_of, whole_or_absent, write_folder
    from passk_fast.weights.megatron import Layout, full_tensors
    from passk_fast.weights.mesh import TrainerMesh

    if dtype is not None:
        dtype_of(dtype)
    target = Path(out)
    check_new(target)
    verify_checkpoint(folder)
    step = step_of(folder)
    assert step is not None, f"{folder} has verified"
    config: RunConfig = load_config(run / "config.toml")
    alone = replace(config, parallel=ParallelConfig())
    shape = ModelShape.read(run / "model")
    start_process_group("cpu", 600)
    mesh = make_mesh(alone.parallel, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = build_chunks(shape, alone, mesh)
        checkpoint.read_weights(chunks, folder, mesh.device)
    dtype = dtype or config.model.dtype
    with whole_or_absent(target) as staging:
        write_folder(
            full_tensors(chunks, Layout.of(shape, TrainerMesh(world=1), 0)),
            staging,
            like=run / "model",
            dtype=dtype_of(dtype),
        )
        (staging / "README.md").write_text(
            model_card(config, step, dtype),
            encoding="utf-8",
        )
    return target


def locate(source: Path) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) of a run folder or a checkpoint folder."""
    from passk_fast.checkpoint.store import CheckpointStore

    if (source / "config.toml").is_file():
        newest = CheckpointStore(source / "checkpoints", keep=1).newest_good()
        if newest is None:
            raise ConfigError(f"{source} holds no good checkpoint.")
        return source, newest[1]
    run = source.resolve().parent.parent
    if (source / "state.json").is_file() and (run / "config.toml").is_file():
        return run, source
    raise ConfigError(f"{source} is neither a run folder nor a checkpoint of one.")
