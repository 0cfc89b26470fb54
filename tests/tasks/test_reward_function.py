"""Reward functions by dotted path: one or a batch, sync or async, alone or with weights."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast import tasks
from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks.protocol import Task
from passk_fast.tasks.reward_function import RewardFunction, WeightedRewards, parse_parts

MODULE = """
import asyncio
order = []
def right(prompt, response, answer, **columns):
    return float(response == answer)
def short(prompt, response, answer):
    return 1 / (1 + len(response))
def leveled(prompt, response, answer, level, bonus=0):
    return level / 10 + bonus
def everything(prompt, response, answer, **columns):
    assert (prompt, response, answer) == ("1+1?", "2", "2")
    return float(columns == {"level": 5, "tags": ["a"]})
def batch(prompts, responses, answers, level):
    order.append(len(prompts))
    return [l / 10 * (r == a) for r, a, l in zip(responses, answers, level)]
def too_few(prompts, responses, answers):
    return []
async def later(prompt, response, answer, **columns):
    order.append("start " + response)
    await asyncio.sleep(0.01)
    order.append("end " + response)
    return 0.5
async def later_batch(prompts, responses, answers):
    return [0.25] * len(prompts)
def old(prompt, response):
    return float(prompt.answer == response)
def returns(prompt, response, answer, value):
    return value
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def _prompt(**columns: object) -> Prompt:
    return Prompt(id="0", text="1+1?", answer="2", task="t", columns=columns)


def _task(path: str) -> RewardFunction:
    task = tasks.find_task(path, DataConfig())
    assert isinstance(task, RewardFunction)
    return task


def test_a_function_sees_texts_and_columns(module: str) -> None:
    task = _task(f"{module}:everything")
    assert isinstance(task, Task)
    assert task.verify(_prompt(level=5, tags=["a"]), "2") == 1.0
    assert task.answer_of("so <answer> 2 </answer>") == "2"
    assert _task(f"{module}:right").verify(_prompt(), "3") == 0.0


def test_only_columns_that_a_function_names_are_given(module: str) -> None:
    assert _task(f"{module}:short").verify(_prompt(level=5), "2") == 0.5
    assert _task(f"{module}:leveled").verify(_prompt(level=5, other=1), "2") == 0.5
    assert _task(f"{module}:leveled").verify(_prompt(level=5, bonus=0.25), "2") == 0.75


def test_a_missing_column_is_found_before_the_run(module: str) -> None:
    _task(f"{module}:leveled").check_prompt(_prompt(level=1))
    with pytest.raises(ValueError, match=r"field 'level' is missing, which .*:leveled takes"):
        _task(f"{module}:leveled").check_prompt(_prompt())


def test_batches_are_one_call(module: str) -> None:
    task = _task(f"{module}:batch")
    prompts = [_prompt(level=5), _prompt(level=8), _prompt(level=3)]
    assert task.verify_batch(prompts, ["2", "2", "3"]) == [0.5, 0.8, 0.0]
    assert task.verify(_prompt(level=5), "2") == 0.5
    assert task.function.__globals__["order"] == [3, 1]
    with pytest.raises(ValueError, match=r"must return a list of 1 rewards, got \[\]"):
        _task(f"{module}:too_few").verify(_prompt(), "2")


def test_asynchronous_functions_overlap(module: str) -> None:
    task = _task(f"{module}:later")
    assert task.verify_batch([_prompt()] * 2, ["a", "b"]) == [0.5, 0.5]
    assert task.function.__globals__["order"] == ["start a", "start b", "end a", "end b"]
    assert _task(f"{module}:later_batch").verify(_prompt(), "2") == 0.25


@pytest.mark.parametrize("value", [0, 1, True, 0.25, np.float32(0.5), np.bool_(True)])
def test_numbers_in_range_are_rewards(module: str, value: float) -> None:
    assert _task(f"{module}:returns").verify(_prompt(value=value), "") == float(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, None, "1", [1.0], "x" * 500])
def test_anything_else_is_an_error_that_shows_it(module: str, value: object) -> None:
    with pytest.raises(ValueError, match=r":returns gave .{1,80}, not a number in \[0, 1\]"):
        _task(f"{module}:returns").verify(_prompt(value=value), "")


def test_several_with_weights(module: str) -> None:
    name = f"{module}:right*3, {module}:short*1"
    task = tasks.find_task(name, DataConfig())
    assert isinstance(task, WeightedRewards)
    assert task.verify(_prompt(), "2") == 0.75 + 0.125
    assert task.verify(_prompt(), "33") == pytest.approx(0.25 / 3)
    assert task.verify_batch([_prompt()] * 2, ["2", "33"]) == [0.875, pytest.approx(0.25 / 3)]
    assert task.answer_of("<answer>2</answer>") == "2"
    with pytest.raises(ValueError, match="field 'level' is missing"):
        tasks.find_task(f"{module}:right, {module}:leveled", DataConfig()).check_prompt(_prompt())


def test_weights_add_up_to_one() -> None:
    assert parse_parts("a.b:f") == [("a.b:f", 1.0)]
    assert parse_parts("a:f*1, b:g*3") == [("a:f", 0.25), ("b:g", 0.75)]
    assert parse_parts("a:f, b:g") == [("a:f", 0.5), ("b:g", 0.5)]


@pytest.mark.parametrize("text", ["a:f*0", "a:f*-1", "a:f*e", "a:f**2", "a:f,", "f", "a:f*1e999"])
def test_bad_weights(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a"):
        parse_parts(text)


def test_functions_of_another_form(module: str) -> None:
    assert tasks.find_task(f"{module}:old", DataConfig()).verify(_prompt(), "2") == 1.0
    with pytest.raises(ConfigError, match=r"only functions .* can have a weight"):
        tasks.find_task(f"{module}:old*0.5", DataConfig())
    with pytest.raises(ConfigError, match="first parameters must be named prompt, response"):
        RewardFunction("x", lambda a, b, c: 1.0)


def test_a_task_travels_to_verifier_processes(module: str) -> None:
    task = pickle.loads(pickle.dumps(_task(f"{module}:right")))
    assert task.verify(_prompt(), "2") == 1.0


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_any_weights_add_up_to_one(weights: list[float]) -> None:
    text = ", ".join(f"a.b:f{i}*{weight!r}" for i, weight in enumerate(weights))
    parts = parse_parts(text)
    assert [path for path, _ in parts] == [f"a.b:f{i}" for i in range(len(weights))]
    assert sum(weight for _, weight in parts) == pytest.approx(1.0)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5))
def test_weighted_rewards_stay_in_range(values: list[float]) -> None:
    def one(value: float) -> RewardFunction:
        def given_value(prompt: str, response: str, answer: str) -> float:
            return value

        return RewardFunction("given", given_value)

    weight = 1.0 / len(values)
    task = WeightedRewards("all", tuple((weight, one(value)) for value in values))
    reward = task.verify(_prompt(), "2")
    assert 0.0 <= reward <= 1.0
    assert reward == pytest.approx(sum(values) / len(values))
    assert task.verify_batch([_prompt()], ["2"]) == [reward]
