"""configs/papers/: one file for each published set-up, all of them valid and as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.config.file import load_config

FOLDER = Path(__file__).parents[2] / "configs" / "papers"
FILES = sorted(FOLDER.glob("*.toml"))


def load(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.toml")


def phases(config: RunConfig, *steps: int) -> list[tuple[str, int]]:
    """(estimator, k) at the steps."""
    plan = Schedule(config.algorithm, config.seed)
    return [(stage.estimator, stage.k) for step in steps for stage in plan.stages(step)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_valid_run(path: Path) -> None:
    config = load_config(path)
    Schedule(config.algorithm, config.seed)
    assert config.output_dir == f"runs/papers/{path.stem}"
    assert "arXiv" in path.read_text().splitlines()[0]
    assert "not checked on hardware" in path.read_text().lower()


def test_the_set_up_of_pass_k_training() -> None:
    config = load("maze_passk")
    algorithm = config.algorithm
    got: dict[str, Any] = {
        "prompts": config.prompts_per_step,
        "mini-batch": config.prompts_per_step // algorithm.minibatches,
        "rollouts": algorithm.num_rollouts,
        "lr": config.optim.lr,
        "warm-up": config.optim.lr_warmup_steps,
        "clip": (config.loss.clip_low, config.loss.clip_high),
        "terms": (config.loss.kl_coef, config.loss.entropy_coef),
        "denominator": algorithm.loss_denominator,
        "train": config.data.maze.train_sizes,
        "samples": config.eval.num_rollouts,
    }
    assert got == {
        "prompts": 128,
        "mini-batch": 32,
        "rollouts": 32,
        "lr": 1e-6,
        "warm-up": 10,
        "clip": (0.2, 0.28),
        "terms": (0.0, 0.0),
        "denominator": "response_tokens",
        "train": (9, 11, 13, 15),
        "samples": 32,
    }
    assert (config.eval.temperature, config.eval.top_p) == (1.0, 0.95)


def test_what_differs() -> None:
    assert {load(f"maze_passk{part}").algorithm.k for part in ("_k4", "", "_k16")} == {4, 8, 16}
    lrs = [load(f"maze_passk{part}").optim.lr for part in ("", "_lr2", "_lr4")]
    assert lrs == pytest.approx([1e-6, 2e-6, 4e-6])
    assert phases(load("maze_three_phases"), 99, 100, 369, 370, 749) == [
        ("grpo", 1), ("passk", 8), ("passk", 8), ("grpo", 1), ("grpo", 1)
    ]  # fmt: skip
    pkpo = load("pkpo_math_annealed")
    assert pkpo.algorithm.num_rollouts == 16
    assert phases(pkpo, 1499, 1500) == [("pkpo_sloo_minus_one", 8), ("rloo", 1)]
    maxrl = load("maxrl_maze")
    assert (maxrl.prompts_per_step, maxrl.algorithm.num_rollouts) == (256, 128)
    assert maxrl.optim.lr == 1e-4
    enigmata = load("enigmata_qwen2.5_7b")
    assert enigmata.model.path.endswith("Qwen2.5-7B-Instruct")
    assert enigmata.eval.num_rollouts == 8  # 32 for mazes, 8 elsewhere


def test_the_list_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FILES:
        stem, last = path.stem.rsplit("_", 1)
        assert f"`{path.stem}`" in text or (f"`_{last}`" in text and f"`{stem}" in text), path.stem
