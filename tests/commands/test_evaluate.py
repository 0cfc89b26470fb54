"""`passk-fast eval`: tasks and their sample counts, what a task's record says, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from passk_fast.commands.evaluate import as_table, by_task, parse_samples, task_record
from passk_fast.config import EvalConfig
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
    text = as_table(
        {"model": "m", "temperature": 1.0, "top_p": 0.95, "seed": 0, "tasks": {"exact": record}}
    )
    assert "exact, 3 prompts x 4: pass@1 0.417 (0.300)  pass@2 0.500 (0.289)  pass@4" in text


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -1.0}])
def test_bad_settings(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"eval\.{name}"):
        EvalConfig(**options)  # type: ignore[arg-type]
