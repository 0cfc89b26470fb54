"""What is found before any process group starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passk_fast.commands.check_run import check_run
from passk_fast.config import (
    AlgorithmConfig,
    DataConfig,
    LogprobGapConfig,
    ModelConfig,
    ParallelConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
    ShapeConfig,
    WarmStartConfig,
)
from passk_fast.config.file import dump_toml
from passk_fast.errors import ConfigError, DataError, DiskError, PasskError
from tests.empty_weights import write_empty_weights


def make(tmp_path: Path, **changes: Any) -> RunConfig:
    """A good configuration with fields replaced."""
    base: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "model": ModelConfig(shape=ShapeConfig(max_positions=2048)),
    }
    return RunConfig(**(base | changes))


def model_folder(tmp_path: Path, **changes: Any) -> str:
    """A folder that looks like a Qwen3 model; `changes` go to its config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "vocab_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 15}}}))
    write_empty_weights(folder)
    return str(folder)


def test_good_configurations_pass(tmp_path: Path) -> None:
    check_run(make(tmp_path), 1)
    check_run(make(tmp_path, model=ModelConfig(path=model_folder(tmp_path))), 2)


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({"parallel": ParallelConfig(tensor=2)}, 3, "tensor x parallel.pipeline"),
        ({"rollout": RolloutConfig(tensor=2)}, 1, "rollout.tensor = 2"),
        ({"parallel": ParallelConfig(tensor=4)}, 4, "2 key-value heads are not divisible"),
        ({"parallel": ParallelConfig(tensor=3)}, 3, "4 heads are not divisible"),
        ({"parallel": ParallelConfig(pipeline=3)}, 3, "4 layers are not divisible"),
        ({"parallel": ParallelConfig(context=2)}, 3, "parallel.context = 1 x 1 x 2 = 2"),
        ({"rollout": RolloutConfig(tensor=3)}, 3, "4 heads are not divisible by rollout.tensor"),
        ({"data": DataConfig(train="x.jsonl")}, 1, "x.jsonl: no such file"),
    ],
)
def test_bad_meshes_and_data(
    tmp_path: Path, changes: dict[str, Any], world: int, message: str
) -> None:
    with pytest.raises(PasskError, match=message):
        check_run(make(tmp_path, **changes), world)


BREAK: dict[str, Callable[[Path], object]] = {
    "is not a folder": lambda f: f.rename(f.with_name("elsewhere")),
    "has no config.json": lambda f: (f / "config.json").unlink(),
    "cannot be read": lambda f: (f / "config.json").write_text("{"),
    "has no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "holds no .*safetensors": lambda f: (f / "model.safetensors").unlink(),
    "token id 99, but config.json says vocab_size = 16": lambda f: (
        f / "tokenizer.json"
    ).write_text(json.dumps({"model": {"vocab": {"a": 99}}})),
}


@pytest.mark.parametrize("message", BREAK)
def test_broken_model_folders(tmp_path: Path, message: str) -> None:
    folder = model_folder(tmp_path)
    BREAK[message](Path(folder))
    with pytest.raises(ConfigError, match=message):
        check_run(make(tmp_path, model=ModelConfig(path=folder)), 1)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"max_position_embeddings": 64}, "holds 64 positions"),
    ],
)
def test_models_that_do_not_fit(tmp_path: Path, field: dict[str, Any], message: str) -> None:
    folder = model_folder(tmp_path, **field)
    with pytest.raises(ConfigError, match=message):
        check_run(make(tmp_path, model=ModelConfig(path=folder)), 1)


MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
}


@pytest.mark.parametrize(
    ("field", "changes", "world", "message"),
    [
        ({}, {"parallel": ParallelConfig(expert=4)}, 4, "6 experts are not divisible"),
        (
            {},
            {"parallel": ParallelConfig(expert_tensor=3)},
            3,
            "40 channels of an expert are not divisible by p",
        ),
        (
            {"moe_intermediate_size": 33},
            {"rollout": RolloutConfig(tensor=2)},
            2,
            r"not divisible by rollout\.tensor",
        ),
        ({"mlp_only_layers": [0]}, {}, 1, "dense layers among"),
        ({}, {"parallel": ParallelConfig(expert=2)}, 3, "parallel.expert"),
    ],
)
def test_experts_that_do_not_fit(
    tmp_path: Path, field: dict[str, Any], changes: dict[str, Any], world: int, message: str
) -> None:
    folder = model_folder(tmp_path, **{**MOE, **field})
    with pytest.raises(ConfigError, match=message):
        check_run(make(tmp_path, model=ModelConfig(path=folder), **changes), world)


def test_experts_that_fit(tmp_path: Path) -> None:
    config = make(
        tmp_path,
        model=ModelConfig(path=model_folder(tmp_path, **MOE)),
        parallel=ParallelConfig(tensor=2, expert=2),
        algorithm=AlgorithmConfig(balance_coef=0.01),
    )
    check_run(config, 2)
    assert not config.skips_zero_advantage


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": ParallelConfig(expert=2)},
        {"algorithm": AlgorithmConfig(balance_coef=0.1)},
        {
            "algorithm": AlgorithmConfig(balance_bias_rate=0.1),
            "logprob_gap": LogprobGapConfig(max=1.0),
            "loss": PolicyLoss(tis_clip=2.0),
        },
    ],
)
def test_dense_models_have_no_experts(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a dense model has no experts"):
        check_run(make(tmp_path, **changes), 2)


def test_warm_start_needs_responses(tmp_path: Path) -> None:
    rows, learned = tmp_path / "p.jsonl", tmp_path / "learned.jsonl"
    rows.write_text("{}")
    learned.write_text('{"prompt": "a", "response": "b"}')
    folder = ModelConfig(path=model_folder(tmp_path))
    data, warm = DataConfig(train=str(rows)), WarmStartConfig(steps=3)
    with pytest.raises(ConfigError, match=r"warm_start\.steps = 3 needs responses"):
        check_run(make(tmp_path, data=data, warm_start=warm, model=folder), 1)
    warm = dataclasses.replace(warm, data=str(learned))
    check_run(make(tmp_path, data=data, warm_start=warm, model=folder), 1)
    with pytest.raises(ConfigError, match=r"warm_start\.data needs model\.path"):
        check_run(make(tmp_path, warm_start=warm), 1)
    learned.write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match=r"learned\.jsonl:1: field 'response' is missing"):
        check_run(make(tmp_path, data=data, warm_start=warm, model=folder), 1)


def test_another_runs_folder_is_refused_and_its_own_is_not(tmp_path: Path) -> None:
    config = make(tmp_path)
    out = Path(config.output_dir)
    out.mkdir()
    (out / "config.toml").write_text(dump_toml(config))
    check_run(dataclasses.replace(config, steps=999), 1)
    with pytest.raises(ConfigError, match="these differ: seed"):
        check_run(dataclasses.replace(config, seed=7), 1)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be made"):
        check_run(make(tmp_path, output_dir=str(tmp_path / "file" / "out")), 1)


def test_missing_data_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check_run(make(tmp_path, data=DataConfig(test="gone.jsonl")), 1)


@pytest.mark.parametrize("task", ["exact", "code"])
def test_early_stop_looks_at_the_task_of_every_row(tmp_path: Path, task: str) -> None:
    rows = [{"prompt": "a", "answer": "b", "task": name} for name in ("maths", task)]
    rows[1]["answer"] = json.dumps(["assert True"])
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = make(
        tmp_path,
        model=ModelConfig(path=model_folder(tmp_path)),
        data=DataConfig(train=str(tmp_path / "rows.jsonl")),
        rollout=RolloutConfig(early_stop=True),
        algorithm=AlgorithmConfig(loss_denominator="sequences"),
    )
    if task == "exact":
        check_run(config, 1)
        return
    with pytest.raises(ConfigError, match=r"rollout\.early_stop with the task 'code'"):
        check_run(config, 1)
