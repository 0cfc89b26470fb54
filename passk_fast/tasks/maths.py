"""The task `maths`: is the final answer of a response equal to the prompt's, as mathematics?

The answer is read here; equal text and plain integers are decided here; the rest is compared by
math-verify in a child with limits and a deadline of its own (`maths_equality`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from passk_fast.data.types import Prompt
from passk_fast.tasks.answers import boxed, last_answer
from passk_fast.tasks.packages import require_package
from passk_fast.tasks.sandbox import Limits, shared_sandbox

LIMITS = Limits(wall_s=5.0, cpu_s=5, memory_mib=1024)
MAX_ANSWER = 1000
"""Characters; a longer answer is wrong without being read."""
_EQUALITY = "passk_fast.tasks.maths_equality"
_HASHES = re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE)
_PHRASE = re.compile(r"\banswer(?:[ \t]+is)?[ \t]*[:=]?[ \t*]*(\S[^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)
_NOISE = re.compile(
    r"\$|\\[!,;: ]|\\left(?![a-z])|\\right(?![a-z])|\\[()\[\]]|(?<!\w)\s+|\s+(?!\w)"
)


def final_answer(response: str) -> str | None:
    """The answer of a response, or None where it gives none.

    The first of these that is there: the last `\\boxed{}`, the last `<answer>` tag (or the box in
    it), the last line after `####`, what follows the last "answer is" or "Answer:" on its line.
    """
    found = boxed(response)
    if found is None:
        found = last_answer(response)
    for pattern in (_HASHES, _PHRASE):
        if found is None and (lines := pattern.findall(response)):
            found = lines[-1].strip().rstrip(".*")
    return None if found is None else found.strip()


def _number(text: str) -> Fraction | None:
    """The value of a plain decimal number, thousands separators allowed."""
    return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def decided(gold: str, answer: str) -> float | None:
    """1.0 for equal text or numbers, 0.0 for different integers; None: it needs mathematics."""
    wanted, given = (_NOISE.sub("", text).rstrip(".") for text in (gold, answer))
    if not given or len(answer) > MAX_ANSWER:
        return 0.0
    if wanted == given:
        return 1.0
    left, right = _number(wanted), _number(given)
    if left is None or right is None:
        return None
    if left == right:
        return 1.0
    return 0.0 if left.denominator == right.denominator == 1 else None


@dataclass(frozen=True)
class Maths:
    """Compares the final answer to the prompt's answer: 0.5 is 1/2 is \\frac12."""

    name: str = "maths"
    binary: ClassVar[bool] = True

    def verify(self, prompt: Prompt, response: str) -> float:
        """1.0 if the final answers are equal, else 0.0.

        Raises:
            VerifierFailed: the comparison took too much time or memory.
        """
        answer = final_answer(response)
        if answer is None:
            return 0.0
        quick = decided(prompt.answer, answer)
        if quick is not None:
            return quick
        sandbox = shared_sandbox(limits=LIMITS, preload=(_EQUALITY,), executes_code=False)
        sandbox.prepare(f"{_EQUALITY}:warm")
        return sandbox.judge(f"{_EQUALITY}:equal", prompt.answer, answer)

    def answer_of(self, response: str) -> str:
        """The final answer, without one the response; outer space removed."""
        answer = final_answer(response)
        return (response if answer is None else answer).strip()

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError for an empty answer; ConfigError where math-verify is not installed."""
        require_package("math_verify", "math-verify", "maths.txt", self.name)
        if not prompt.answer.strip():
            raise ValueError("field 'answer' is empty")
