"""The order of prompts: every prompt once an epoch, resumable anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.data.types import Prompt
from passk_fast.errors import DataError
from passk_fast.tasks import PromptOrder
from passk_fast.tasks.order import EndlessPrompts


@given(st.integers(1, 40), st.integers(0, 5), st.lists(st.integers(1, 30), max_size=6))
def test_every_prompt_once_an_epoch(num_prompts: int, seed: int, counts: list[int]) -> None:
    order = PromptOrder(num_prompts, seed)
    drawn = [i for count in counts for i in order.take(count)]
    for start in range(0, len(drawn) - num_prompts + 1, num_prompts):
        assert sorted(drawn[start : start + num_prompts]) == list(range(num_prompts))


@given(st.integers(1, 40), st.integers(0, 90), st.integers(1, 50))
def test_a_saved_position_continues(num_prompts: int, before: int, after: int) -> None:
    order = PromptOrder(num_prompts, 3)
    order.take(before)
    again = PromptOrder(num_prompts, 3)
    again.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert again.take(after) == order.take(after)
    assert again.state_dict() == order.state_dict()


def test_a_prompt_is_taken_as_often_as_its_chance_says() -> None:
    order = PromptOrder(10, 5)
    taken = order.take(4000, lambda prompt: 0.2 if prompt < 5 else 1.0)
    rare = sum(prompt < 5 for prompt in taken)
    assert 0.2 / 1.2 - 0.03 < rare / len(taken) < 0.2 / 1.2 + 0.03
    again = PromptOrder(10, 5)
    assert again.take(4000, lambda prompt: 0.2 if prompt < 5 else 1.0) == taken


def test_a_data_set_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="10 training prompts"):
        PromptOrder(9, 0).load_state_dict(PromptOrder(10, 0).state_dict())


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PromptOrder(0, 0)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = PromptOrder(50, 0)
    first = order.take(50)
    assert first != order.take(50)
    assert first != PromptOrder(50, 1).take(50)


def test_an_endless_data_set_is_taken_as_it_is_numbered_and_resumes() -> None:
    prompts = EndlessPrompts(lambda i: Prompt(id=str(i), text="x", answer="", task="exact"), 3)
    order = PromptOrder.of(prompts, 0)
    assert order.take(2) + order.take(5) == list(range(7))
    again = PromptOrder.of(prompts, 0)
    again.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert again.take(4) == order.take(4) == [7, 8, 9, 10]
    assert [prompts[i].id for i in (0, 7)] == ["0", "7"]
    with pytest.raises(DataError, match="training prompts"):
        PromptOrder.of(list(prompts), 0).load_state_dict(order.state_dict())
    assert sorted(PromptOrder.of(list(prompts), 0).take(3)) == [0, 1, 2]
