"""The task `exact`: the response must give the prompt's answer, letter for letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passk_fast.data.types import Prompt
from passk_fast.tasks.answers import tagged_answer


@dataclass(frozen=True)
class Exact:
    """Compares the last `<answer>` tag (without one, the response) to the prompt's answer."""

    name: str = "exact"
    binary: ClassVar[bool] = True

    def verify(self, prompt: Prompt, response: str) -> float:
        """1.0 if the answers are equal once outer space is removed, else 0.0."""
        return float(tagged_answer(response) == prompt.answer.strip())

    def answer_of(self, response: str) -> str:
        """What `verify` compares."""
        return tagged_answer(response)
