"""Tasks by name and by dotted path: a task with a verifier is one file outside the package."""

from __future__ import annotations

import json
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest

from passk_fast.config import DataConfig, PuzzlesConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.tasks import (
    Task,
    Verifier,
    check_binary,
    find_task,
    load_prompts,
    train_prompts,
    verify,
)
from passk_fast.tasks.registry import BUILT_IN, answer_of

OWN_TASKS = '''
class Sums:
    """Rewards closeness, and reads the last word of a response."""

    name = "sums"

    def verify(self, prompt, response):
        wanted, got = int(prompt.answer), int(self.answer_of(response))
        return 1.0 if got == wanted else 0.5 if abs(got - wanted) == 1 else 0.0

    def answer_of(self, response):
        return response.split()[-1]

    def check_prompt(self, prompt):
        if "+" not in prompt.text:
            raise ValueError("field 'prompt' holds no sum")

class OnlyAName:
    name = "half a task"

def shouts(prompt, response):
    return float(response.isupper())

def asks_too_much(prompt, response, mood):
    return 1.0

def asks_nothing():
    return 1.0

class NotCallable(Sums):
    verify = 1.0

SUMS = Sums()
NOT_CALLABLE = NotCallable()
HALF = OnlyAName()
NUMBER = 3
'''


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module, outside of the package, that holds OWN_TASKS."""
    name = f"own_tasks_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN_TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def sum_prompt(task: str) -> Prompt:
    return Prompt(id="0", text="20 + 22?", answer="42", task=task)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tasks_keep_the_protocol(name: str) -> None:
    task = find_task(name, DataConfig())
    assert isinstance(task, Task)
    assert task.name == name
    assert task.answer_of("so <answer> RR </answer>") == "RR"
    assert task.answer_of(" RR\n") == "RR"


def test_an_object_by_its_dotted_path(own_tasks: str) -> None:
    prompt = sum_prompt(f"{own_tasks}:SUMS")
    rewards = [verify(prompt, f"it is {n}", config=DataConfig()) for n in (42, 43, 7)]
    assert rewards == [1.0, 0.5, 0.0]
    assert answer_of(prompt, "it is 43") == "43"


def test_a_function_by_its_dotted_path(own_tasks: str) -> None:
    prompt = sum_prompt(f"{own_tasks}:shouts")
    assert verify(prompt, "FORTY-TWO", config=DataConfig()) == 1.0
    assert verify(prompt, "forty-two", config=DataConfig()) == 0.0
    assert answer_of(prompt, "<answer>A</answer>") == "A"
    assert find_task(prompt.task, DataConfig()).name == prompt.task


def test_a_data_set_may_mix_own_and_built_in_tasks(own_tasks: str, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"prompt": "1 + 1?", "answer": "2", "task": task}
        for task in ("exact", f"{own_tasks}:SUMS", f"{own_tasks}:shouts")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(train=str(path))
    prompts = train_prompts(config)
    assert [verify(prompt, "3", config=config) for prompt in prompts] == [0.0, 0.5, 0.0]


def test_an_own_task_may_refuse_a_prompt_as_it_is_read(own_tasks: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "1", "answer": "1", "task": f"{own_tasks}:SUMS"}))
    with pytest.raises(DataError, match=r"bad\.jsonl:1: field 'prompt' holds no sum\."):
        load_prompts(path)


@pytest.mark.timeout(120)
def test_own_tasks_run_in_verifier_processes(own_tasks: str) -> None:
    judge = partial(verify, config=DataConfig())
    assert pickle.loads(pickle.dumps(judge))(sum_prompt("exact"), "42") == 1.0
    with VerifierPool(judge, processes=1, timeout_s=60) as pool:
        paths = ("exact", f"{own_tasks}:SUMS", f"{own_tasks}:shouts")
        futures = [pool.submit(sum_prompt(path), ["42"]) for path in paths]
        assert [future.result() for future in futures] == [[1.0], [1.0], [0.0]]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("chess", "task 'chess' is unknown; known: maze, exact, .*, or the dotted path"),
        (
            "no_such_module:TASK",
            "no_such_module cannot be imported: ModuleNotFoundError",
        ),
        (":TASK", "must have the form FILE:FUNCTION"),
        ("OWN:missing", "has no 'missing'"),
        ("OWN:Sums", "is a class: name an object of it"),
        ("OWN:HALF", "has no verify and no answer_of"),
        ("OWN:NUMBER", "has no name and no verify and no answer_of"),
        ("OWN:asks_nothing", r"takes \(\), and would be called as verify"),
        ("math:log", "takes unknown parameters, and would be called as verify"),
        ("OWN:NOT_CALLABLE", "its `verify` cannot be called"),
        ("OWN:asks_too_much", r"takes \(prompt, response, mood\), and would be called as verify"),
    ],
)
def test_what_is_no_task_is_refused(own_tasks: str, path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_task(path.replace("OWN", own_tasks), DataConfig())


def test_a_module_is_imported_only_when_it_is_needed(own_tasks: str) -> None:
    find_task("exact", DataConfig())
    assert own_tasks not in sys.modules
    find_task(f"{own_tasks}:SUMS", DataConfig())
    assert own_tasks in sys.modules


REWARD_FILE = """
import asyncio
def right(prompt, response, answer):
    return float(response == answer)
async def slow(prompt, response, answer, level=1.0):
    await asyncio.sleep(0)
    return level * len(set(response) & set(answer)) / max(1, len(set(answer)))
def batch(prompts, responses, answers):
    return [len(responses) / 10 for _ in responses]
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARD_FILE)
    return str(tmp_path / "rewards.py")


def test_the_key_data_verifier_judges_every_row(reward_file: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"prompt": "1", "answer": "ab"})
        + "\n"
        + json.dumps({"prompt": "2", "answer": "ab", "task": "maze", "level": 0.5})
    )
    name = f"{reward_file}:right*3, {reward_file}:slow*1"
    config = DataConfig(train=str(rows), verifier=name)
    prompts = load_prompts(rows, config)
    assert [prompt.task for prompt in prompts] == [name, name], "above the task of a row"
    verifier = Verifier(config)
    assert [verifier(prompt, "a") for prompt in prompts] == [0.125, 0.0625]
    assert verifier.of_group(prompts[0], ["ab", "a"]) == [1.0, 0.125]
    with pytest.raises(ConfigError, match=r"data\.verifier = .*set one of them"):
        DataConfig(verifier=name)


def test_what_is_judged_together_and_what_needs_a_process(reward_file: str) -> None:
    verifier = Verifier(DataConfig())
    together = {"right": False, "slow": True, "batch": True}
    for function, wanted in together.items():
        prompt = sum_prompt(f"{reward_file}:{function}")
        assert verifier.wants_groups(prompt) is wanted
        assert verifier.needs_process(prompt)
    assert verifier.of_group(sum_prompt(f"{reward_file}:batch"), ["a", "b"]) == [0.2, 0.2]
    assert not verifier.wants_groups(sum_prompt("exact"))
    assert not verifier.needs_process(sum_prompt("exact"))
    assert Verifier(DataConfig(), always_process=True).needs_process(sum_prompt("exact"))


@pytest.mark.parametrize("name", ["code", "FILE:right", "puzzles"])
def test_early_stop_is_refused_where_rewards_may_be_fractions(reward_file: str, name: str) -> None:
    config = DataConfig(puzzles=PuzzlesConfig(partial_credit=True))
    name = name.replace("FILE", reward_file)
    with pytest.raises(ConfigError, match=r"rollout\.early_stop with the task .*between 0 and 1"):
        check_binary(["maze", "exact", "maths", name], config)
    check_binary(["maze", "", "exact", "maths", "puzzles"], DataConfig())
