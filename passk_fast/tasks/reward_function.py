"""Reward functions of the user's own as a task: `my_package.rewards:score`.

`(prompt, response, answer, **columns) -> float in [0, 1]`, all texts. With the names `prompts`,
`responses`, `answers` it takes lists and returns a list. It may be `async`. Several with weights:
"my_package.rewards:right*0.9, my_package.rewards:short*0.1".
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks.answers import tagged_answer

Score = Callable[..., object]
ONE = ("prompt", "response", "answer")
MANY = ("prompts", "responses", "answers")
NO_REWARD = "not a number in [0, 1]"
"""What is said of a value that is no reward."""
_PART = re.compile(r"\s*(?P<path>[\w./-]+:\w+)\s*(?:\*\s*(?P<weight>[\d.eE+-]+)\s*)?")


@dataclass(frozen=True)
class RewardFunction:
    """One function as a task. A batch function is called with lists of one entry by `verify`."""

    name: str
    function: Score

    def __post_init__(self) -> None:
        if not is_reward_function(self.function):
            raise ConfigError(
                f"reward function {self.name!r} takes {signature_text(self.function)}: its "
                f"first parameters must be named {', '.join(ONE)}, or for batches "
                f"{', '.join(MANY)}; further ones are columns of the row."
            )

    @property
    def wants_batches(self) -> bool:
        """Whether it takes lists, or is asynchronous, so that its waits overlap."""
        return _takes_batches(self.function) or inspect.iscoroutinefunction(self.function)

    def verify(self, prompt: Prompt, response: str) -> float:
        """The function's reward. ValueError where it is no finite number in [0, 1]."""
        return self.verify_batch([prompt], [response])[0]

    def verify_batch(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Rewards of responses, each to the prompt at its place; asynchronous ones overlap."""
        if _takes_batches(self.function):
            values = self._of_batch(prompts, responses)
        else:
            pairs = zip(prompts, responses, strict=True)
            values = _gathered([self._of_one(prompt, text) for prompt, text in pairs])
        return [self._checked(value) for value in values]

    def _of_one(self, prompt: Prompt, response: str) -> object:
        columns = {name: prompt.columns[name] for name in self._columns([prompt])}
        return self.function(prompt=prompt.text, response=response, answer=prompt.answer, **columns)

    def _of_batch(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[object]:
        columns = {
            name: [prompt.columns.get(name) for prompt in prompts]
            for name in self._columns(prompts)
        }
        (values,) = _gathered(
            [
                self.function(
                    prompts=[prompt.text for prompt in prompts],
                    responses=list(responses),
                    answers=[prompt.answer for prompt in prompts],
                    **columns,
                )
            ]
        )
        if not isinstance(values, Sequence) or len(values) != len(prompts):
            raise ValueError(
                f"{self.name} must return a list of {len(prompts)} rewards, got {_short(values)}"
            )
        return values

    def _columns(self, prompts: Sequence[Prompt]) -> list[str]:
        """Columns of the rows that the function takes."""
        parameters = inspect.signature(self.function).parameters
        held = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return [name for name in held if name not in (*ONE, *MANY)]
        return [name for name in held if name in list(parameters)[3:]]

    def _checked(self, value: object) -> float:
        if isinstance(value, numbers.Real | np.bool_):
            reward = float(value)
            if math.isfinite(reward) and 0.0 <= reward <= 1.0:
                return reward
        raise ValueError(f"{self.name} gave {_short(value)}, {NO_REWARD}")

    def answer_of(self, response: str) -> str:
        """The last `<answer>` tag's content, without one the response."""
        return tagged_answer(response)

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError for a row without a column that the function must have."""
        for name, parameter in list(inspect.signature(self.function).parameters.items())[3:]:
            free = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if not free and parameter.default is parameter.empty and name not in prompt.columns:
                raise ValueError(f"field {name!r} is missing, which {self.name} takes")


@dataclass(frozen=True)
class WeightedRewards:
    """Several reward functions; the reward is their mean by weights, which add up to 1."""

    name: str
    parts: tuple[tuple[float, RewardFunction], ...]

    @property
    def wants_batches(self) -> bool:
        """Whether one of the functions does."""
        return any(part.wants_batches for _, part in self.parts)

    def verify(self, prompt: Prompt, response: str) -> float:
        """The weighted mean, in [0, 1]."""
        return min(1.0, sum(w * part.verify(prompt, response) for w, part in self.parts))

    def verify_batch(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The weighted mean of each response."""
        columns = [part.verify_batch(prompts, responses) for _, part in self.parts]
        weights = [w for w, _ in self.parts]
        return [
            min(1.0, sum(w * value for w, value in zip(weights, row, strict=True)))
            for row in zip(*columns, strict=True)
        ]

    def answer_of(self, response: str) -> str:
        """The last `<answer>` tag's content, without one the response."""
        return tagged_answer(response)

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError for a row without a column that one of the functions must have."""
        for _, part in self.parts:
            part.check_prompt(prompt)


def is_reward_function(function: object) -> bool:
    """Whether a function's first parameters are those of a reward function."""
    if not callable(function):
        return False
    try:
        names = tuple(inspect.signature(function).parameters)[:3]
    except (TypeError, ValueError):  # as in `signature_text`
        return False
    return names in (ONE, MANY)


def signature_text(function: Score) -> str:
    """The parameters of a function, for an error message."""
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):  # some functions written in C have no signature
        return "unknown parameters"


def parse_parts(text: str) -> list[tuple[str, float]]:
    """(dotted path, weight) of "a.b:f*0.9, a.b:g*0.1"; the weights add up to 1 afterwards.

    Raises:
        ConfigError: no such form, or a weight that is not above 0.
    """
    parts: list[tuple[str, float]] = []
    for piece in text.split(","):
        match = _PART.fullmatch(piece)
        if match is None:
            raise ConfigError(
                f"reward {piece.strip()!r} must be a dotted path with a weight, such as "
                "'my_package.rewards:score*0.5'."
            )
        try:
            weight = float(match["weight"] or 1.0)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"reward {piece.strip()!r}: its weight must be a number above 0.")
        parts.append((match["path"], weight))
    total = sum(weight for _, weight in parts)
    return [(path, weight / total) for path, weight in parts]


def _takes_batches(function: Score) -> bool:
    return tuple(inspect.signature(function).parameters)[:3] == MANY


def _gathered(values: list[object]) -> list[object]:
    """The values, those that are awaitable run together in an event loop of their own."""
    waiting = [value for value in values if inspect.isawaitable(value)]
    if not waiting:
        return values

    async def gather() -> list[object]:
        return list(await asyncio.gather(*map(_as_coroutine, waiting)))

    results = iter(asyncio.run(gather()))
    return [next(results) if inspect.isawaitable(value) else value for value in values]


async def _as_coroutine(value: Awaitable[object]) -> object:
    return await value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
