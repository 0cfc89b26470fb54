"""Prompts: what they carry, and where they can be put."""

from __future__ import annotations

import pickle

from passk_fast.data.types import Prompt


def _prompt(**columns: object) -> Prompt:
    return Prompt(id="0", text="1 + 1?", answer="2", task="exact", columns=columns)


def test_columns_belong_to_a_prompt() -> None:
    assert _prompt() == Prompt(id="0", text="1 + 1?", answer="2", task="exact")
    assert _prompt(level=1) != _prompt(level=2)


def test_prompts_with_columns_can_be_pickled_and_hashed() -> None:
    prompt = _prompt(level=[1, {"deep": None}])
    assert pickle.loads(pickle.dumps(prompt)) == prompt
    assert len({prompt, pickle.loads(pickle.dumps(prompt)), _prompt(level=2)}) == 2
