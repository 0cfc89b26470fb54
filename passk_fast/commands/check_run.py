"""Everything that can be found wrong before a process group starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from passk_fast.advantage.schedule import Schedule
from passk_fast.config import ParallelConfig, RunConfig, require
from passk_fast.config.file import INPUTS, differing_fields, load_config
from passk_fast.errors import ConfigError, DataError, DiskError
from passk_fast.model.config_json import read_config, read_json
from passk_fast.model.divisibility import check_engine_ranks, check_fits
from passk_fast.model.shape import ModelShape
from passk_fast.tasks.dataset import load_prompts
from passk_fast.tasks.demonstrations import load_demonstrations
from passk_fast.tasks.files import is_on_hub
from passk_fast.tasks.puzzles import check_puzzles
from passk_fast.tasks.registry import check_binary, find_task
from passk_fast.weights.folder_check import check_tensors

_GPU_FILES = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
"""One of them is there where a driver is loaded; the last one is WSL's."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Raise for the first thing that would make the run fail; returns nothing.

    Raises:
        ConfigError: mesh, model folder, sizes, or the output folder of another configuration.
        DataError: a data file does not exist.
        DiskError: the output folder cannot be written.
    """
    _check_trainer_ranks(config, world_size)
    _check_machine(config)
    engine_ranks = config.rollout.dedicated_ranks or world_size
    check_engine_ranks(engine_ranks, config.rollout.tensor, "rollout ranks")
    schedule = Schedule(config.algorithm, config.seed)  # raises for a stage that is refused
    schedule.check_rollout(config.rollout)
    if config.model.path:
        shape, source = _read_model_folder(Path(config.model.path)), "model.path"
    else:
        shape, source = ModelShape.of(config.model.shape), "model.shape"
    check_fits(shape, config, source)
    shape.check_routing_replay(config.algorithm.routing_replay)
    _check_data(config)
    _check_output(config)


def _check_machine(config: RunConfig) -> None:
    """A GPU where one is asked for; on a CPU memory for one engine's cache at least."""
    has_gpu = any(Path(name).exists() for name in _GPU_FILES) or shutil.which("nvidia-smi")
    require(
        config.device != "cuda" or bool(has_gpu),
        "device = 'cuda', but this machine has no NVIDIA driver. Set device = 'auto' or 'cpu', or "
        "start on a machine with a GPU.",
    )
    total_gib = psutil.virtual_memory().total / 2**30
    require(
        bool(has_gpu) or config.rollout.kv_cache_gib < total_gib,
        f"rollout.kv_cache_gib must be below this machine's memory of {total_gib:.0f} GiB, got "
        f"{config.rollout.kv_cache_gib}.",
    )


def _check_trainer_ranks(config: RunConfig, world_size: int) -> None:
    """The ranks that rollout.dedicated_ranks leaves must make up the trainer's mesh."""
    dedicated = config.rollout.dedicated_ranks
    taken = f"rollout.dedicated_ranks = {dedicated} of {world_size} ranks leaves"
    require(dedicated < world_size, f"{taken} none to train.")
    left = world_size - dedicated
    try:
        config.parallel.data(left)
    except ConfigError as error:
        raise ConfigError(
            f"{taken} {left} to train. {error}" if dedicated else str(error)
        ) from None


def check_evaluation(config: RunConfig, model: Path, world_size: int) -> None:
    """As `check_run`, for sampling from a model folder without training.

    Raises:
        ConfigError: the ranks do not make up whole engines, or the model folder cannot be used.
        DataError: the held-out data do not exist.
    """
    check_engine_ranks(world_size, config.rollout.tensor, "rollout ranks")
    check_fits(_read_model_folder(model), replace(config, parallel=ParallelConfig()), str(model))
    _check_source(config.data.test, "data.test")


def _read_model_folder(folder: Path) -> ModelShape:
    """The folder's model, after checking that weights and a tokenizer fit to its config.json."""
    require(
        folder.is_dir(),
        f"model.path: {folder} is not a folder. It must be a Hugging Face model folder on this "
        "machine, written out in full; `hf download NAME --local-dir FOLDER` makes one.",
    )
    require((folder / "config.json").is_file(), f"model.path: {folder} has no config.json.")
    fields = read_config(folder)
    require(
        bool(fields.get("architectures")),
        f"model.path: {folder}/config.json names no architectures; vLLM needs them.",
    )
    shape = ModelShape.parse(fields, "model.path")
    has_tokenizer = any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    )
    require(has_tokenizer, f"model.path: {folder} has no tokenizer (tokenizer.json).")
    check_tensors(folder, shape)
    _check_vocabulary(folder, shape)
    return shape


def _check_vocabulary(folder: Path, shape: ModelShape) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    largest = max(_token_ids(read_json(file, "model.path")), default=-1)
    require(
        largest < shape.vocab,
        f"model.path: the tokenizer has token id {largest}, but config.json says vocab_size = "
        f"{shape.vocab}: the folder mixes files of two models.",
    )


def _token_ids(tokenizer: Mapping[str, object]) -> Iterator[int]:
    """All ids of a tokenizer.json, whose vocabulary is a table or a list."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        yield from vocab.values()
    elif isinstance(vocab, list):
        yield from range(len(vocab))
    if isinstance(added, list):
        yield from (token["id"] for token in added)


def _check_source(source: str, field: str) -> None:
    """DataError unless it is empty, exists, or may be a data set on the Hub."""
    if source and not Path(source).exists() and not is_on_hub(source):
        raise DataError(f"{source}: no such file or folder ({field}).")
    needs_datasets = bool(source) and not Path(source).is_file()
    if needs_datasets and importlib.util.find_spec("datasets") is None:
        raise ConfigError(f"{field} = {source!r} needs the `datasets` library; run `make setup`.")


def _check_data(config: RunConfig) -> None:
    data = config.data
    for name in ("train", "test"):
        _check_source(getattr(data, name), f"data.{name}")
    if data.verifier:
        try:
            find_task(data.verifier, data)
        except ConfigError as error:
            raise ConfigError(f"data.verifier: {error}") from error
    if config.rollout.early_stop:
        rows = [] if data.verifier or not data.train else load_prompts(data.train, data)
        names = {prompt.task: None for prompt in rows} or [data.verifier or data.generate]
        check_binary(names, data)
    check_puzzles(data)
    warm_start = config.warm_start
    require(
        not (data.train and warm_start.steps and not warm_start.data),
        f"warm_start.steps = {warm_start.steps} needs responses to learn from: with data.train, "
        "set warm_start.data to a file of them, or warm_start.steps to 0.",
    )
    require(
        not warm_start.data or bool(config.model.path),
        "warm_start.data needs model.path: a model made from scratch has a tokenizer for generated "
        "prompts only.",
    )
    if warm_start.data:
        load_demonstrations(warm_start.data)
    require(
        not data.train or bool(config.model.path),
        "data.train needs model.path: a model made from scratch has a tokenizer for mazes only.",
    )


def _check_output(config: RunConfig) -> None:
    cache = Path(config.warm_start.cache_dir)
    if config.warm_start.steps and cache.exists() and not cache.is_dir():
        raise DiskError(f"warm_start.cache_dir: {cache} is a file; name a folder.")
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"output_dir: {folder} cannot be made: {error.strerror}. Name another folder."
        ) from None
    if not os.access(folder, os.W_OK):
        raise DiskError(f"output_dir: {folder} cannot be written.")
    previous = folder / "config.toml"
    if not previous.is_file():
        return
    try:
        other = load_config(previous)
    except ConfigError as error:
        raise ConfigError(f"output_dir: {folder} holds a run of another version: {error}") from None
    fields = differing_fields(other, config, by_content=(folder / INPUTS).is_file())
    if fields:
        raise ConfigError(
            f"output_dir: {folder} holds a run of another config; these differ: "
            f"{', '.join(fields)}. Take another --output-dir, or the old values to continue it."
        )
