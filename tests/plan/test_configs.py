"""The configurations that ship, planned; and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from passk_fast.commands.main import main
from passk_fast.config import ModelConfig, ParallelConfig
from passk_fast.config.file import load_config
from passk_fast.errors import ConfigError
from passk_fast.plan.fit import Model
from passk_fast.plan.hardware import GIB, gpu_of
from passk_fast.plan.plan import Plan, make_plan
from passk_fast.plan.report import as_json, as_text
from passk_fast.plan.worker import Prober

pytestmark = pytest.mark.megatron

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [
    ("qwen2.5_7b", 8, "h100", 7_615_616_512),
    ("qwen2.5_32b", 32, "h100", 32_763_876_352),
    ("qwen3_32b", 32, "h100", 32_762_123_264),
    ("qwen3_30b_a3b", 32, "h100", 30_532_122_624),
    ("qwen3_235b_a22b", 256, "h100", 235_093_634_560),
]
"""The last number is the published count of weights."""


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    with Prober() as worker:
        yield worker


def plan(prober: Prober, name: str, gpus: int, gpu: str, **changes: Any) -> Plan:
    path = CONFIGS / f"{name}.toml"
    config = replace(load_config(path), **changes)
    return make_plan(config, Model.find(config, path), gpu_of(gpu), gpus, prober)


@pytest.mark.parametrize(("name", "gpus", "gpu", "weights"), SHIPPED)
def test_what_ships_fits(prober: Prober, name: str, gpus: int, gpu: str, weights: int) -> None:
    start = time.process_time()
    found = plan(prober, name, gpus, gpu)
    assert time.process_time() - start < 60
    assert found.weights == weights
    held = sum(s.parameters for s in found.memory.stages)
    parallel = found.config.parallel
    if parallel.expert == 1:  # what the ranks of a model hold together is the model
        assert held * parallel.tensor == pytest.approx(2 * weights, rel=1e-3)
    assert found.memory.training_peak <= found.memory.capacity
    assert found.memory.engine.kv_cache > 0
    # Every engine rank gets its weights; nothing else travels.
    assert found.reshard.received <= found.memory.engine.weights
    assert found.reshard.kept + found.reshard.received >= found.memory.engine.weights
    modes = found.activations
    assert modes["none"] >= modes["selective"] > modes["full"]
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    assert "estimate, not measured" in as_text(found)
    assert json.loads(json.dumps(as_json(found)))["bottleneck"] == found.bottleneck


def test_gemma2_is_planned(prober: Prober) -> None:
    """Its norms, soft caps and windows go through the layers that are measured."""
    model = ModelConfig(path="models/gemma-2-2b")
    found = plan(prober, "qwen2.5_7b", 8, "h100", model=model)
    assert found.weights == 2_614_341_888  # the published count
    assert found.memory.training_peak <= found.memory.capacity


def test_more_gpus_and_faster_gpus_take_less_time(prober: Prober) -> None:
    h100 = plan(prober, "qwen3_32b", 32, "h100")
    h200 = plan(prober, "qwen3_32b", 32, "h200")
    more = plan(prober, "qwen3_32b", 64, "h100")
    assert h200.step_seconds < h100.step_seconds
    assert more.step_seconds < h100.step_seconds
    assert h200.memory.engine.kv_cache > h100.memory.engine.kv_cache
    assert h100.bubble == 0.0


APART: dict[str, Any] = {"max_off_policy_steps": 1, "sleep": False, "gpu_memory_utilization": 0.9}


def apart(name: str, ranks: int) -> dict[str, Any]:
    """A configuration's sections with `ranks` GPUs that sample alone."""
    config = load_config(CONFIGS / f"{name}.toml")
    return {
        "rollout": replace(config.rollout, dedicated_ranks=ranks, **APART),
        "loss": replace(config.loss, tis_clip=2.0),
    }


def test_sides_on_gpus_of_their_own(prober: Prober) -> None:
    """Each holds its own and takes its own time: twice 8 GPUs beside 8 that do both in turn."""
    both = plan(prober, "qwen2.5_7b", 8, "h100")
    found = plan(prober, "qwen2.5_7b", 16, "h100", **apart("qwen2.5_7b", 8))
    memory, together = found.memory, both.memory
    assert memory.stages == together.stages
    assert memory.training_peak == together.training_peak - together.asleep
    assert memory.rollout_peak == memory.awake + memory.reserve  # nothing of the trainer
    assert memory.engine.kv_cache > together.engine.kv_cache
    assert found.train == both.train
    assert found.decode.total <= both.decode.total  # more keys and values, more at once
    longer = max(found.decode.total, found.train.total)
    assert found.step_seconds == pytest.approx(longer + found.reshard.seconds)
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    assert found.bottleneck.startswith("train") == (found.train.total > found.decode.total)
    # What the engines hold all comes from other GPUs.
    assert found.reshard.kept == 0
    assert found.reshard.received == found.memory.engine.weights
    assert "on the last 8 GPUs" in as_text(found)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (8, "rollout.dedicated_ranks = 8 of 8 GPUs leaves none to train"),
        (6, "World size 2 is not divisible"),
    ],
)
def test_sides_that_do_not_divide(prober: Prober, ranks: int, words: str) -> None:
    sections = apart("qwen2.5_7b", ranks)
    sections["parallel"] = ParallelConfig(tensor=4)
    with pytest.raises(ConfigError, match=words):
        plan(prober, "qwen2.5_7b", 8, "h100", **sections)


def test_too_few_trainers_are_refused_with_a_change(prober: Prober) -> None:
    """The engine's share of memory is no help to a trainer that has no engine."""
    sections = apart("qwen3_32b", 24)
    with pytest.raises(ConfigError, match=r"an update needs .*Smallest change that fits: .") as got:
        plan(prober, "qwen3_32b", 32, "h100", **sections)
    assert "gpu_memory_utilization" not in str(got.value)
    assert "rollout.sleep" not in str(got.value)


def test_what_does_not_fit_is_refused_with_a_change_that_does(prober: Prober) -> None:
    path = CONFIGS / "qwen3_32b.toml"
    config = load_config(path)
    config = replace(config, rollout=replace(config.rollout, gpu_memory_utilization=0.7))
    with pytest.raises(ConfigError, match=r"sampling needs .* of 79\.6") as caught:
        make_plan(config, Model.find(config, path), gpu_of("h100"), 32, prober)
    advice = str(caught.value).rpartition("Smallest change that fits: ")[2]
    name, _, value = advice.rstrip(".").partition(" = ")
    assert name == "rollout.gpu_memory_utilization"
    share = float(value)
    changed = replace(config.rollout, gpu_memory_utilization=share)
    fits = plan(prober, "qwen3_32b", 32, "h100", rollout=changed)
    assert fits.memory.rollout_peak <= fits.memory.capacity
    above = replace(config.rollout, gpu_memory_utilization=share + 0.011)
    with pytest.raises(ConfigError, match="sampling needs"):
        plan(prober, "qwen3_32b", 32, "h100", rollout=above)


def test_recompute_is_the_first_change_when_activations_are_too_many(prober: Prober) -> None:
    parallel = replace(load_config(CONFIGS / "qwen3_32b.toml").parallel, recompute="none")
    with pytest.raises(ConfigError, match=r'Smallest .*: parallel\.recompute = "full"\.'):
        plan(prober, "qwen3_32b", 32, "h100", parallel=parallel, micro_batch_tokens=24576)


def test_a_mesh_that_does_not_divide(prober: Prober) -> None:
    with pytest.raises(ConfigError, match="a dense model has no experts"):
        plan(prober, "qwen2.5_7b", 8, "h100", parallel=ParallelConfig(expert=2))
    with pytest.raises(ConfigError, match="4 key-value heads are not divisible by"):
        plan(prober, "qwen2.5_7b", 8, "h100", parallel=ParallelConfig(tensor=8))
    with pytest.raises(ConfigError, match="28 layers are not divisible"):
        plan(prober, "qwen2.5_7b", 8, "h100", parallel=ParallelConfig(pipeline=8))
    with pytest.raises(ConfigError, match="not divisible"):
        plan(prober, "qwen2.5_7b", 7, "h100")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "a100", "--gpus", "8"], "--gpu must be one of"),
        (["--gpus", "none"], "--gpus must be a positive number"),
        ([], "usage: passk-fast plan"),
        (["--gpus", "8", "--model.path", "models/Nobody"], "no config.json"),
    ],
)
def test_the_command_line_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(CONFIGS / "qwen2.5_7b.toml"), *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_capacity_is_the_cards() -> None:
    assert gpu_of("h200").memory_gib * GIB == pytest.approx(143771 * 2**20, rel=0.001)
