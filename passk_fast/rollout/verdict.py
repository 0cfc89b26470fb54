"""The reward of a response by a verifier: what it may be, and what is kept of a failure."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from passk_fast.data.types import Prompt

Verify = Callable[[Prompt, str], float]
"""The reward of a response (its text) to a prompt; expected in [0, 1], and checked."""
_OUR_FOLDER = str(Path(__file__).parents[1]) + os.sep
_LONGEST = 500
"""Characters of an exception's text that are kept."""


@runtime_checkable
class GroupVerifier(Protocol):
    """A verifier that knows more than how to judge one response."""

    def __call__(self, prompt: Prompt, text: str) -> float:
        """As `Verify`."""

    def of_group(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[object]:
        """The rewards of several responses to one prompt, in their order."""

    def wants_groups(self, prompt: Prompt) -> bool:
        """Whether responses to this prompt are to be judged together."""

    def needs_process(self, prompt: Prompt) -> bool:
        """Whether the verifier is code that this process must not run itself."""

    def prepare(self) -> None:
        """Import what verdicts need, before the deadline of the first one runs."""


class VerifierError(Exception):
    """A verifier gave no reward."""

    def __init__(self, kind: str, text: str, where: str = "") -> None:
        """`kind` is the exception's class or what else happened; `where` its line of code."""
        super().__init__(": ".join(part for part in (kind, text) if part))
        self.kind, self.text, self.where = kind, text, where

    def words(self) -> str:
        """The exception's last line, and where it was raised."""
        return f"{self} ({self.where})" if self.where else str(self)


def reward_of(value: object) -> float:
    """The value as a reward; ValueError unless it is a number in [0, 1]."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        reward = float(value)
        if math.isfinite(reward) and 0.0 <= reward <= 1.0:
            return reward
    raise ValueError(f"the verifier gave {_short(value)}, not a reward in [0, 1]")


def rewards_by(verify: Verify, prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """Checked rewards of responses to one prompt, in this process.

    Raises:
        VerifierError: the verifier raised an Exception, or gave no rewards.
    """
    try:
        if isinstance(verify, GroupVerifier) and verify.wants_groups(prompt):
            rewards = [reward_of(value) for value in verify.of_group(prompt, texts)]
        else:
            rewards = [reward_of(verify(prompt, text)) for text in texts]
        if len(rewards) != len(texts):
            raise ValueError(f"the verifier gave {len(rewards)} rewards for {len(texts)} responses")
    except Exception as error:  # a user's verifier may raise anything; it is counted, not hidden
        raise as_verifier_error(error) from error
    return rewards


def as_verifier_error(error: BaseException) -> VerifierError:
    """What is kept of an exception: its class, its text and its line of code."""
    try:
        text = str(error)[:_LONGEST]
    except BaseException:  # even `__str__` is the user's own
        text = "its text cannot be shown"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OUR_FOLDER)]
    where = f"{os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno}" if theirs else ""
    return VerifierError(type(error).__name__, text, where)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
