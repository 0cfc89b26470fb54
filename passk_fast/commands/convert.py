"""`passk-fast convert`: a checkpoint of any mesh -> a Hugging Face folder, on one CPU process."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from passk_fast.config import ParallelConfig, RunConfig
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.process import quiet


def command(arguments: list[str]) -> ExitCode:
    """`RUN_OR_CHECKPOINT OUT`."""
    if len(arguments) != 2:
        raise ConfigError("usage: passk-fast convert RUN_OR_CHECKPOINT OUT")
    quiet()
    print(f"Wrote {convert(arguments[0], arguments[1])}")
    return ExitCode.DONE


def convert(source: str, out: str) -> Path:
    """Write the checkpoint `source` (its folder, or a run folder: the newest good) to `out`.

    Weights are written in the run's dtype, with its config and tokenizer files.

    Raises:
        ConfigError: `source` is neither, or `out` exists and is not empty.
        CorruptCheckpointError: the checkpoint's files do not match its manifest.
    """
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.actor.model import DTYPES, build_chunks
    from passk_fast.checkpoint import megatron as checkpoint
    from passk_fast.checkpoint.store import verify_checkpoint
    from passk_fast.config.file import load_config
    from passk_fast.model.shape import ModelShape
    from passk_fast.process_group import start_process_group
    from passk_fast.weights.hf import write_folder
    from passk_fast.weights.megatron import Layout, full_tensors
    from passk_fast.weights.mesh import TrainerMesh

    run, folder = locate(Path(source))
    target = Path(out)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} exists and is not empty; name a new folder.")
    verify_checkpoint(folder)
    config: RunConfig = replace(load_config(run / "config.toml"), parallel=ParallelConfig())
    shape = ModelShape.read(run / "model")
    start_process_group("cpu", 600)
    mesh = make_mesh(config.parallel, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = build_chunks(shape, config, mesh)
        checkpoint.read_weights(chunks, folder, mesh.device)
    write_folder(
        full_tensors(chunks, Layout.of(shape, TrainerMesh(world=1), 0)),
        target,
        like=run / "model",
        dtype=DTYPES[config.model.dtype],
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
