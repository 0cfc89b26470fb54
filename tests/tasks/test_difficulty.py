"""Difficulty memory: chances against brute force, forgetting, checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

from passk_fast.errors import DataError
from passk_fast.tasks.difficulty import Difficulty

N = 8
LIVE = tuple(1 <= c <= 4 for c in range(N + 1))


def test_an_unknown_prompt_is_worth_a_try() -> None:
    assert Difficulty(3).informative_chance(1, LIVE) == 1.0


@pytest.mark.parametrize("correct", [0, 3, 8])
def test_chance_is_that_of_sampling_from_the_posterior(correct: int) -> None:
    memory = Difficulty(3)
    memory.observe(1, correct, N, step=4)
    rng = np.random.default_rng(0)
    accuracy = rng.beta(1 + correct, 1 + N - correct, size=200_000)
    drawn = np.array(LIVE)[rng.binomial(N, accuracy)].mean()
    assert memory.informative_chance(1, LIVE) == pytest.approx(drawn, abs=4e-3)


def test_all_rows_have_probability_one() -> None:
    memory = Difficulty(1)
    memory.observe(0, 5, 8, step=1)
    assert memory.informative_chance(0, (True,) * (N + 1)) == pytest.approx(1.0, rel=1e-12)


def test_the_past_counts_half() -> None:
    memory = Difficulty(2)
    memory.observe(0, 8, 8, step=1)
    memory.observe(0, 0, 8, step=5)
    assert memory.seen(0) == (4.0, 12.0, 5)
    assert memory.seen(1) is None


def test_a_checkpoint_keeps_it() -> None:
    memory = Difficulty(4)
    memory.observe(3, 1, 8, step=2)
    memory.observe(0, 8, 8, step=2)
    again = Difficulty(4)
    again.load_state_dict(json.loads(json.dumps(memory.state_dict())))
    assert [again.seen(i) for i in range(4)] == [memory.seen(i) for i in range(4)]
    with pytest.raises(DataError, match="4 training prompts, the data set has 5"):
        Difficulty(5).load_state_dict(memory.state_dict())
