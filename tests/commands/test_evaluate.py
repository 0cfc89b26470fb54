"""`passk-fast eval`: tasks and their sample counts, what a task's record says, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from passk_fast.commands.evaluate import ALL_PROMPTS, by_task, evaluation_config, parse_samples
from passk_fast.commands.evaluation_options import OBEYED, REFUSED, given_fields, refusal
from passk_fast.commands.evaluation_record import EvaluationRecord, as_table, task_record
from passk_fast.config import EvalConfig, RunConfig
from passk_fast.config.file import flatten
from passk_fast.data.types import Prompt, Rollout, RolloutGroup
from passk_fast.errors import ConfigError, DataError


def prompt(name: str, task: str) -> Prompt:
    return Prompt(id=name, text="x", answer="1", task=task)


def group(texts: list[str]) -> RolloutGroup:
    """A group whose correct responses say 1."""
    rollouts = tuple(
        Rollout(token_ids=(1,), logprobs=(-1.0,), text=text, finished=text != "cut")
        for text in texts
    )
    rewards = np.array([float(text == "1") for text in texts])
    return RolloutGroup(
        prompt=prompt("a", "exact"), prompt_ids=(1,), rollouts=rollouts, rewards=rewards
    )


def test_sample_counts_of_tasks() -> None:
    assert parse_samples("") == {}
    assert parse_samples("maze=32,exact=8") == {"maze": 32, "exact": 8}
    prompts = [prompt("0", "maze"), prompt("1", "exact"), prompt("2", "maze")]
    found = by_task(prompts, {"maze": 32}, 8)
    assert {task: (len(p), n) for task, (p, n) in found.items()} == {
        "maze": (2, 32),
        "exact": (1, 8),
    }


@pytest.mark.parametrize("text", ["maze", "maze=0", "maze=-1", "maze=x", "=3", "a=1,a=2", "a=1,"])
def test_bad_sample_counts(text: str) -> None:
    with pytest.raises(ConfigError, match="--samples must be like"):
        parse_samples(text)


def test_unknown_tasks_and_no_prompts() -> None:
    with pytest.raises(ConfigError, match=r"names task 'math', which no held-out prompt has.*maze"):
        by_task([prompt("0", "maze")], {"math": 4}, 8)
    with pytest.raises(DataError, match=r"set data\.test"):
        by_task([], {}, 8)


def test_a_task_record() -> None:
    groups = [
        group(["1", "2", "2", "3"]),
        group(["1", "1", "1", "1"]),
        group(["4", "5", "6", "cut"]),
    ]
    record = task_record(groups, k=8)
    assert (record["prompts"], record["rollouts"], record["k"]) == (3, 4, 4)
    assert record["pass@1"] == record["reward"] == pytest.approx(5 / 12)
    assert record["pass@2"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert record["pass@4"] == record["pass@k"] == pytest.approx(2 / 3)
    spread = np.std([0.25, 1, 0], ddof=1) / math.sqrt(3)
    assert record["pass@1_se"] == pytest.approx(spread)
    assert record["correct_histogram"] == [1, 1, 0, 0, 1]
    assert record["wrong_distinct_share"] == pytest.approx((2 / 3 + 1) / 2)
    assert record["truncated_share"] == pytest.approx(1 / 12)
    assert "parts" not in record
    assert "max@k" not in record
    text = as_table(whole_record({"exact": record}, held_out_prompts=3))
    assert text.splitlines()[0] == "runs/a/checkpoints/step_7 (step 7): temperature 1, top_p 0.95"
    assert "exact, 3 prompts x 4: pass@1 0.417 (0.300)  pass@2 0.500 (0.289)  pass@4" in text
    assert "the first" not in text
    text = as_table(whole_record({"exact": record}, held_out_prompts=4))
    assert text.splitlines()[1] == "the first 3 of 4 held-out prompts"


def whole_record(tasks: dict[str, dict[str, object]], held_out_prompts: int) -> EvaluationRecord:
    return EvaluationRecord(
        model="runs/a",
        checkpoint="runs/a/checkpoints/step_7",
        step=7,
        config="a.toml",
        temperature=1.0,
        top_p=0.95,
        seed=0,
        truncated="judge",
        held_out_prompts=held_out_prompts,
        tasks=tasks,
    )


def test_parts_of_a_task_are_reported_by_themselves() -> None:
    ids = ("small", "large", "small", "")
    texts = (["1", "1"], ["2", "2"], ["1", "2"], ["2", "cut"])
    groups = [
        replace(group(list(t)), prompt=prompt(i, "exact")) for i, t in zip(ids, texts, strict=True)
    ]
    record = task_record(groups, k=2, part_of=lambda p: p.id)
    parts = record["parts"]
    assert isinstance(parts, dict)
    assert {name: (p["prompts"], p["pass@1"], p["pass@2"]) for name, p in parts.items()} == {
        "small": (2, 0.75, 1.0),
        "large": (1, 0.0, 0.0),
        "other": (1, 0.0, 0.0),
    }
    assert parts["other"]["truncated_share"] == 0.5
    assert all("parts" not in part for part in parts.values())
    lines = as_table(whole_record({"exact": record}, held_out_prompts=4)).splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["exact", "  small", "  large", "  other"]


def test_fractional_rewards_have_max_at_k() -> None:
    fractions = replace(group(["1", "2", "2", "2"]), rewards=np.array([0.5, 0.25, 0.0, 0.25]))
    record = task_record([fractions, group(["1", "1", "2", "2"])], k=2)
    assert record["mean_reward"] == record["reward"] == pytest.approx((0.25 + 0.5) / 2)
    assert record["max@4"] == pytest.approx((0.5 + 1) / 2)
    assert record["pass@4"] == 0.5
    line = as_table(whole_record({"exact": record}, held_out_prompts=2)).splitlines()[2]
    assert line.strip().startswith("mean_reward 0.375 (0.125)  max@2")


def test_every_option_is_obeyed_or_refused() -> None:
    """A new field of the configuration must be entered in one of the tables."""
    fields = {name for name, _ in flatten(RunConfig())}
    assert fields >= OBEYED
    assert [field for field in fields - OBEYED if refusal(field) is None] == []
    unused = [start for start in REFUSED if not any(f.startswith(start) for f in fields - OBEYED)]
    assert unused == []


@pytest.mark.parametrize(
    ("override", "field"),
    [
        (["--optim.lr", "1"], "--optim.lr has no effect on `passk-fast eval`: it trains nothing"),
        (["--rollout.temperature=0.5"], "--rollout.temperature .*--eval.temperature sets it"),
        (["--rollout.early-stop"], "--rollout.early-stop has no effect"),
        (["--share-prompts"], "--share-prompts has no effect"),
        (["--model.path", "x"], "--model FOLDER"),
        (["--eval.every", "3"], "--eval.every has no effect"),
        (["--data.maze.train-per-size", "3"], "it makes no training prompts"),
        (["--eval.top-p", "1", "--rollout.no-sleep"], "--rollout.sleep has no effect"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(override: list[str], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        evaluation_config("configs/maze_cpu.toml", override)


def test_the_number_of_prompts_is_that_of_the_command_line_or_all() -> None:
    def num_prompts(*overrides: str) -> int:
        return evaluation_config("configs/maze_cpu.toml", overrides).eval.num_prompts

    assert num_prompts() == num_prompts("--eval.top-p", "1") == ALL_PROMPTS
    assert num_prompts("--eval.num-prompts", "7") == num_prompts("--eval.num_prompts=7") == 7
    assert given_fields(["--rollout.no-prefix-caching", "--seed=3"]) == [
        "rollout.prefix_caching",
        "seed",
    ]


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -1.0}])
def test_bad_settings(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"eval\.{name}"):
        EvalConfig(**options)  # type: ignore[arg-type]
