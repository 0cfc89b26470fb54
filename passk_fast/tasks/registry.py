"""Tasks by name: the built-in ones, and any other by the dotted path to it.

`BUILT_IN` lists the first; "my_package.my_module:TASK" (or "FILE.py:TASK") is an object with the
methods of `protocol.Task`, a function (prompt, response) -> reward, or a reward function
(`reward_function`), that is imported when first needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.tasks.answers import tagged_answer
from passk_fast.tasks.code import Code
from passk_fast.tasks.exact import Exact
from passk_fast.tasks.maths import Maths
from passk_fast.tasks.maze import Maze
from passk_fast.tasks.protocol import JudgesBatches, NamesParts, Task
from passk_fast.tasks.puzzles import Puzzles
from passk_fast.tasks.reward_function import (
    RewardFunction,
    WeightedRewards,
    is_reward_function,
    parse_parts,
    signature_text,
)
from passk_fast.tasks.user_code import load_object

BUILT_IN: dict[str, Callable[[DataConfig], Task]] = {
    "maze": lambda config: Maze(config.maze, config.seed),
    "exact": lambda config: Exact(),
    "maths": lambda config: Maths(),
    "code": lambda config: Code(),
    "puzzles": lambda config: Puzzles(config.puzzles, config.seed),
}
"""How to make each task of this package."""


@dataclass(frozen=True)
class FunctionTask:
    """A verifier that is a plain function; answers are read from `<answer>` tags."""

    name: str
    function: Callable[[Prompt, str], float]

    def verify(self, prompt: Prompt, response: str) -> float:
        """What the function returns."""
        return self.function(prompt, response)

    def answer_of(self, response: str) -> str:
        """As the task `exact` reads it."""
        return tagged_answer(response)


@lru_cache(maxsize=256)
def find_task(name: str, config: DataConfig) -> Task:
    """The task of a name or dotted path.

    Raises:
        ConfigError: unknown, cannot be imported, or not a task.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](config)
    if ":" in name:
        return _weighted(name) if "," in name or "*" in name else _imported(name)
    raise ConfigError(
        f"task {name!r} is unknown; known: {', '.join(BUILT_IN)}, or the dotted path to one of "
        "your own, such as 'my_package.my_module:TASK'."
    )


def _imported(path: str) -> Task:
    try:
        found = load_object(path)
    except ConfigError as error:
        raise ConfigError(f"task {error}") from error
    if inspect.isclass(found):
        raise ConfigError(f"task {path!r} is a class: name an object of it.")
    if inspect.isroutine(found):
        task: object = (
            RewardFunction(path, found) if is_reward_function(found) else FunctionTask(path, found)
        )
    else:
        task = found
    if not isinstance(task, Task):
        missing = [name for name in ("name", "verify", "answer_of") if not hasattr(task, name)]
        raise ConfigError(
            f"task {path!r} is no task: it has no {' and no '.join(missing)} "
            "(passk_fast.tasks.protocol.Task), and it is no function (prompt, response) -> reward."
        )
    _check_arguments(path, found if isinstance(task, FunctionTask) else task.verify)
    return task


def _weighted(name: str) -> Task:
    parts = []
    for path, weight in parse_parts(name):
        task = _imported(path)
        if not isinstance(task, RewardFunction):
            raise ConfigError(
                f"task {path!r}: only functions (prompt, response, answer, **columns) -> reward "
                "can have a weight."
            )
        parts.append((weight, task))
    return WeightedRewards(name, tuple(parts))


def _check_arguments(path: str, verify: object) -> None:
    if not callable(verify):
        raise ConfigError(f"task {path!r}: its `verify` cannot be called.")
    try:
        inspect.signature(verify).bind(None, "")
    except (TypeError, ValueError):
        raise ConfigError(
            f"task {path!r}: its verifier takes {signature_text(verify)}, and would be called as "
            "verify(prompt, response)."
        ) from None


def verify(prompt: Prompt, response: str, *, config: DataConfig) -> float:
    """The reward that the prompt's own task gives; a mixed data set has several tasks."""
    return find_task(prompt.task, config).verify(prompt, response)


@dataclass(frozen=True)
class Verifier:
    """Every prompt's own task, as a `rollout.verdict.GroupVerifier`; it can be pickled."""

    config: DataConfig
    always_process: bool = False
    """Judge built-in tasks in verifier processes too."""

    def __call__(self, prompt: Prompt, text: str) -> float:
        """The reward of one response."""
        return verify(prompt, text, config=self.config)

    def of_group(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[object]:
        """Rewards by the task's own `verify_batch`."""
        task = find_task(prompt.task, self.config)
        assert isinstance(task, JudgesBatches)
        return task.verify_batch([prompt] * len(texts), texts)

    def wants_groups(self, prompt: Prompt) -> bool:
        """Reward functions for batches, asynchronous ones, and tasks with `verify_batch`."""
        if prompt.task in BUILT_IN:
            return False
        task = find_task(prompt.task, self.config)
        if isinstance(task, RewardFunction | WeightedRewards):
            return task.wants_batches
        return isinstance(task, JudgesBatches)

    def needs_process(self, prompt: Prompt) -> bool:
        """True for all code but this package's: it may hang, leave or print without end."""
        return self.always_process or prompt.task not in BUILT_IN

    def prepare(self) -> None:
        """Import what data.verifier names; tasks of single rows come with their first response."""
        if self.config.verifier:
            find_task(self.config.verifier, self.config)


def check_binary(names: Iterable[str], config: DataConfig) -> None:
    """ConfigError for a task that does not say, by its attribute `binary`, that its rewards are 0
    or 1 alone: rollout.early_stop counts correct responses. Empty names are passed over."""
    for name in dict.fromkeys(names):
        if name and getattr(find_task(name, config), "binary", False) is not True:
            raise ConfigError(
                f"rollout.early_stop with the task {name!r}, whose rewards may lie between 0 and "
                "1: the count of correct responses does not say when its advantages are zero. Set "
                "rollout.early_stop = false, or give your task object the attribute binary = True."
            )


def answer_of(prompt: Prompt, response: str) -> str:
    """The answer inside a response, as the prompt's own task reads it, whatever its settings."""
    return find_task(prompt.task, DataConfig()).answer_of(response)


def part_of(prompt: Prompt, config: DataConfig) -> str:
    """The part of its task that a prompt belongs to, such as "9x9"; "" where the task names none.

    Raises:
        DataError: the task's `part_of` raised, or gave no text.
    """
    task = find_task(prompt.task, config)
    if not isinstance(task, NamesParts):
        return ""
    try:
        part: object = task.part_of(prompt)
    except Exception as error:
        raise DataError(
            f"prompt {prompt.id!r}: `part_of` of the task {prompt.task!r} raised {error!r}."
        ) from error
    if not isinstance(part, str):
        raise DataError(
            f"prompt {prompt.id!r}: `part_of` of the task {prompt.task!r} gave {part!r}, not text."
        )
    return part
