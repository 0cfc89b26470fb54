"""Everything that can be found wrong before a process group starts."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from passk_fast.advantage.schedule import Schedule
from passk_fast.config import ParallelConfig, RunConfig, require
from passk_fast.config.file import config_digest, differing_fields, load_config
from passk_fast.errors import ConfigError, DataError, DiskError

ARCHITECTURES = (
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "LlamaForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
)


def check_run(config: RunConfig, world_size: int) -> None:
    """Raise for the first thing that would make the run fail; returns nothing.

    Raises:
        ConfigError: mesh, model folder, sizes, or the output folder of another configuration.
        DataError: a data file does not exist.
        DiskError: the output folder cannot be written.
    """
    _check_trainer_ranks(config, world_size)
    require(
        bool(config.rollout.dedicated_ranks) or world_size % config.rollout.tensor == 0,
        f"World size {world_size} is not divisible by rollout.tensor = {config.rollout.tensor}.",
    )
    schedule = Schedule(config.algorithm, config.seed)  # raises for a stage that is refused
    if config.rollout.early_stop:
        schedule.check_early_stop()
    if config.rollout.dynamic_sampling > 1:
        schedule.check_dynamic_sampling()
    if config.model.path:
        _check_sizes(config, _read_model_folder(Path(config.model.path)), "model.path")
    else:
        _check_sizes(config, _shape_as_hf(config), "model.shape")
    _check_data(config)
    _check_output(config)


def _check_trainer_ranks(config: RunConfig, world_size: int) -> None:
    """The ranks that rollout.dedicated_ranks leaves must make up the trainer's mesh."""
    apart = config.rollout.dedicated_ranks
    require(
        apart < world_size,
        f"rollout.dedicated_ranks = {apart} of {world_size} ranks leaves none to train.",
    )
    try:
        config.parallel.data(world_size - apart)
    except ConfigError as error:
        left = f"rollout.dedicated_ranks = {apart} of {world_size} ranks leaves {world_size - apart} to train"
        raise ConfigError(f"{left}. {error}" if apart else str(error)) from None


def check_evaluation(config: RunConfig, model: Path, world_size: int) -> None:
    """As `check_run`, for sampling from a model folder without training.

    Raises:
        ConfigError: the ranks do not divide into engines, or the model folder cannot be used.
        DataError: the held-out data do not exist.
    """
    require(
        world_size % config.rollout.tensor == 0,
        f"World size {world_size} is not divisible by rollout.tensor = {config.rollout.tensor}.",
    )
    config = replace(config, parallel=ParallelConfig())
    _check_sizes(config, _read_model_folder(model), str(model))
    if config.data.test and not Path(config.data.test).exists():
        raise DataError(f"{config.data.test}: no such file or folder (data.test).")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {file} cannot be read: {error}") from None


def _read_model_folder(folder: Path) -> dict[str, Any]:
    """The folder's config.json, after checking that weights and a tokenizer fit to it."""
    require(folder.is_dir(), f"model.path: {folder} is not a folder.")
    require((folder / "config.json").is_file(), f"model.path: {folder} has no config.json.")
    hf = _json(folder / "config.json")
    found = (hf.get("architectures") or ["none"])[0]
    require(
        found in ARCHITECTURES,
        f"model.path: architecture {found} is not supported; supported: "
        f"{', '.join(ARCHITECTURES)}.",
    )
    has_tokenizer = any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    )
    require(has_tokenizer, f"model.path: {folder} has no tokenizer (tokenizer.json).")
    require(any(folder.glob("*.safetensors")), f"model.path: {folder} holds no *.safetensors file.")
    _check_vocabulary(folder, hf)
    return hf


def _check_vocabulary(folder: Path, hf: dict[str, Any]) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    tokenizer = _json(file)
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    largest = max(ids, default=-1)
    require(
        largest < hf["vocab_size"],
        f"model.path: the tokenizer has token id {largest}, but config.json says vocab_size = "
        f"{hf['vocab_size']}: the folder mixes files of two models.",
    )


def _shape_as_hf(config: RunConfig) -> dict[str, Any]:
    shape = config.model.shape
    return {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "num_hidden_layers": shape.num_layers,
        "intermediate_size": shape.intermediate_size,
        "num_experts": shape.num_experts,
        "max_position_embeddings": shape.max_positions,
    }


def _check_dense(config: RunConfig, hf: dict[str, Any], source: str) -> None:
    experts = config.parallel.expert * config.parallel.expert_tensor
    require(
        experts == 1,
        f"{source}: a dense model has no experts: parallel.expert x parallel.expert_tensor = "
        f"{experts} would have no effect. Take 1.",
    )
    require(
        not config.algorithm.balances_experts,
        f"{source}: a dense model has no experts: algorithm.balance_coef and "
        "algorithm.balance_bias_rate would have no effect. Take 0.",
    )
    tensor = config.parallel.tensor
    require(
        hf["intermediate_size"] % tensor == 0,
        f"{source}: intermediate size {hf['intermediate_size']} is not divisible by "
        f"parallel.tensor = {tensor}.",
    )


def _check_experts(config: RunConfig, hf: dict[str, Any], experts: int, source: str) -> None:
    parallel = config.parallel
    require(
        not hf.get("mlp_only_layers") and hf.get("decoder_sparse_step", 1) == 1,
        f"{source}: dense layers among mixture-of-experts layers are not supported.",
    )
    require(
        experts % parallel.expert == 0,
        f"{source}: {experts} experts are not divisible by parallel.expert = {parallel.expert}.",
    )
    width = hf.get("moe_intermediate_size") or hf["intermediate_size"]
    for name, size in (
        ("parallel.expert_tensor", parallel.expert_tensor),
        ("rollout.tensor", config.rollout.tensor),
    ):
        require(
            width % size == 0,
            f"{source}: an expert's width of {width} is not divisible by {name} = {size}.",
        )


def _check_sizes(config: RunConfig, hf: dict[str, Any], source: str) -> None:
    heads, layers = hf["num_attention_heads"], hf["num_hidden_layers"]
    kv_heads = hf.get("num_key_value_heads") or heads
    tensor, rollout = config.parallel.tensor, config.rollout.tensor
    for name, size in (("heads", heads), ("KV heads", kv_heads)):
        require(
            size % tensor == 0,
            f"{source}: {size} {name} are not divisible by parallel.tensor = {tensor}.",
        )
    experts = hf.get("num_experts") or hf.get("num_local_experts") or 0
    if experts:
        _check_experts(config, hf, experts, source)
    else:
        _check_dense(config, hf, source)
    require(
        heads % rollout == 0,
        f"{source}: {heads} heads are not divisible by rollout.tensor = {rollout}.",
    )
    require(
        kv_heads % rollout == 0 or rollout % kv_heads == 0,
        f"{source}: {kv_heads} KV heads neither divide nor are divided by rollout.tensor = "
        f"{rollout}.",
    )
    stages = config.parallel.pipeline * config.parallel.virtual_pipeline
    require(
        layers % stages == 0,
        f"{source}: {layers} layers are not divisible by parallel.pipeline x "
        f"parallel.virtual_pipeline = {config.parallel.pipeline} x "
        f"{config.parallel.virtual_pipeline}.",
    )
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    require(
        longest <= hf.get("max_position_embeddings", longest),
        f"{source}: the model holds {hf.get('max_position_embeddings')} positions, fewer than "
        f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}.",
    )


def _check_data(config: RunConfig) -> None:
    data = config.data
    for name in ("train", "test"):
        path = getattr(data, name)
        if path and not Path(path).exists():
            raise DataError(f"{path}: no such file or folder (data.{name}).")
    require(
        not (data.train and config.warm_start.steps),
        f"warm_start.steps = {config.warm_start.steps} needs generated mazes, whose solutions are "
        "known; with data.train set it to 0.",
    )
    require(
        not data.train or bool(config.model.path),
        "data.train needs model.path: a model made from scratch has a tokenizer for mazes alone.",
    )
    if config.data.train and importlib.util.find_spec("datasets") is None:
        raise ConfigError("data.train needs the `datasets` library; run `make setup`.")


def _check_output(config: RunConfig) -> None:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"output_dir: {folder} cannot be made: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise DiskError(f"output_dir: {folder} cannot be written.")
    previous = folder / "config.toml"
    if not previous.is_file():
        return
    try:
        other = load_config(previous)
    except ConfigError as error:
        raise ConfigError(f"output_dir: {folder} holds a run of another version: {error}") from None
    if config_digest(other) != config_digest(config):
        fields = ", ".join(differing_fields(other, config))
        raise ConfigError(
            f"output_dir: {folder} holds a run of another config; these differ: {fields}. Take "
            "another --output-dir, or the old values to continue it."
        )
