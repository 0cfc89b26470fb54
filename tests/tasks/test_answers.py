"""The answer inside a response."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.tasks.answers import last_answer, tagged_answer

TEXT = st.text(alphabet="<answer>/ xy\n", max_size=40)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>a</answer>", "a"),
        ("<ANSWER>a</Answer>", "a"),
        ("<answer> a\nb </answer>", " a\nb "),
        ("<answer></answer>", ""),
        ("<answer>a</answer> or <answer>b</answer>", "b"),
        ("<answer>a</answer> or <answer>b", "a"),
        ("<answer>a <answer>b</answer>", "b"),
        ("<answer>a</answer></answer>", "a"),
        ("a</answer>", None),
        ("< answer>a</answer>", None),
        ("", None),
    ],
)
def test_the_last_complete_tag_counts(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


@given(TEXT)
def test_an_answer_is_part_of_the_response_and_holds_no_tag(text: str) -> None:
    answer = last_answer(text)
    if answer is not None:
        assert answer in text
        assert "<answer>" not in answer
        assert "</answer>" not in answer


@given(TEXT, st.text(alphabet="xy <>", max_size=10))
def test_what_is_put_last_is_found(before: str, answer: str) -> None:
    assert last_answer(f"{before}\n<answer>{answer}</answer>") == answer


@given(TEXT)
def test_without_a_tag_the_whole_response_is_the_answer(text: str) -> None:
    wanted = text if last_answer(text) is None else last_answer(text)
    assert wanted is not None
    assert tagged_answer(text) == wanted.strip()
