"""What a task is: a name, a verifier, and how the answer inside a response is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from passk_fast.data.types import Prompt


@runtime_checkable
class Task(Protocol):
    """Judges responses. One file outside this package is enough (docs/tasks.md).

    Verifiers run in processes of their own: both methods must depend on their arguments alone.
    """

    @property
    def name(self) -> str:
        """As the `task` of a prompt names it."""

    def verify(self, prompt: Prompt, response: str) -> float:
        """The reward of a response text, in [0, 1]. An exception counts as a verifier failure."""

    def answer_of(self, response: str) -> str:
        """The answer inside a response: two responses with equal answers say the same."""


@runtime_checkable
class ChecksPrompts(Protocol):
    """A task that can tell while a data set is read that it cannot judge one of its prompts."""

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError, with what is wrong, for a prompt that `verify` could not judge."""


@runtime_checkable
class JudgesBatches(Protocol):
    """A task that would rather judge the responses of a group together."""

    def verify_batch(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[object]:
        """Rewards of responses, each to the prompt at its place."""


@runtime_checkable
class NamesParts(Protocol):
    """A task whose evaluations are reported by part too, such as by size or category."""

    def part_of(self, prompt: Prompt) -> str:
        """The part that a prompt belongs to; "" for none."""


class GeneratedTask(Task, Protocol):
    """A task that makes its own prompts, and solutions for the warm start."""

    def train_prompts(self) -> Sequence[Prompt]:
        """The training split: none of its prompts is in the test split."""

    def test_prompts(self) -> list[Prompt]:
        """The held-out split."""

    def solutions(self, seed: int) -> Iterator[tuple[str, str]]:
        """Endless (prompt, solution) texts, no prompt of them in the test split."""

    def alphabet(self) -> str:
        """All characters of prompts and solutions, sorted."""
