"""The reward of a sum: `data.verifier = "examples/arithmetic/rewards.py:last_number"`."""

from __future__ import annotations

import re


def last_number(prompt: str, response: str, answer: str) -> float:
    """1.0 if the last whole number in the response is the answer, else 0.0."""
    numbers = re.findall(r"\d+", response)
    return float(bool(numbers) and numbers[-1] == answer)
