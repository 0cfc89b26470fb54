"""What is known of each prompt's difficulty, and how likely its group is to be informative.

With c correct of n earlier responses the accuracy has the posterior Beta(1 + c, 1 + n - c), so the
number of correct ones among the next N is beta-binomial. The chance of an informative group is its
mass on the rows of the estimator's table that are not zero.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from passk_fast.errors import DataError

_FORGET = 0.5
"""Older responses come from another policy: seen again, what was known of a prompt counts half."""


class Difficulty:
    """Counts of every prompt that was sampled; a checkpoint keeps them."""

    def __init__(self, num_prompts: int) -> None:
        self._num_prompts = num_prompts
        self._known: dict[int, tuple[float, float, int]] = {}

    def observe(self, prompt: int, correct: int, tried: int, step: int) -> None:
        """Count the responses to a prompt (its index in the data set) at a step."""
        before_correct, before_tried, _ = self._known.get(prompt, (0.0, 0.0, 0))
        self._known[prompt] = (
            _FORGET * before_correct + correct,
            _FORGET * before_tried + tried,
            step,
        )

    def seen(self, prompt: int) -> tuple[float, float, int] | None:
        """(correct, tried, last step) with the past discounted; None when it was never sampled."""
        return self._known.get(prompt)

    def informative_chance(self, prompt: int, informative_rows: tuple[bool, ...]) -> float:
        """Chance that a group of N = len(informative_rows) - 1 responses is informative.

        `informative_rows` says for each number of correct responses whether the group then has a
        gradient. 1 for a prompt that was never sampled.
        """
        known = self._known.get(prompt)
        if known is None:
            return 1.0
        correct, tried, _ = known
        return _informative_mass(1.0 + correct, 1.0 + tried - correct, informative_rows)

    def state_dict(self) -> dict[str, object]:
        """JSON values: the size of the data set and [prompt, correct, tried, last step] rows."""
        rows = [[prompt, *known] for prompt, known in sorted(self._known.items())]
        return {"num_prompts": self._num_prompts, "rows": rows}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """DataError where the data set has another size now."""
        if state["num_prompts"] != self._num_prompts:
            raise DataError(
                f"the checkpoint remembers the difficulty of {state['num_prompts']} training "
                f"prompts, the data set has {self._num_prompts} now."
            )
        rows = state["rows"]
        assert isinstance(rows, list)
        self._known = {int(p): (correct, tried, int(step)) for p, correct, tried, step in rows}


@lru_cache(maxsize=4096)
def _informative_mass(alpha: float, beta: float, informative_rows: tuple[bool, ...]) -> float:
    n = len(informative_rows) - 1
    log_total = _log_beta(alpha, beta)
    log_mass = [
        math.log(math.comb(n, c)) + _log_beta(alpha + c, beta + n - c) - log_total
        for c in range(n + 1)
    ]
    return float(np.exp(log_mass)[np.array(informative_rows)].sum())


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
