"""Programs from responses, and tests in the layouts of published data sets."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast import tasks
from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.tasks.code import Code, program_of, program_tests
from passk_fast.tasks.sandbox import unavailable_reason

HANG_S = 60.0
"""Seconds that only a hang can exceed, on however busy a machine."""
SAMPLES = Path(__file__).parents[2] / "examples" / "data" / "code.jsonl"
contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)


def _prompt(answer: object = "", **columns: object) -> Prompt:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return Prompt(id="0", text="?", answer=text, task="code", columns=columns)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```py\nx = 2\n```", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("<answer>x = 1</answer>", "x = 1"),
        ("```python\nx = 1", "```python\nx = 1"),
        ("", ""),
    ],
)
def test_where_the_program_stands(response: str, program: str) -> None:
    assert program_of(response) == program


ADD = "def add(a, b): return a + b"
LAYOUTS = {
    "statements": _prompt(["assert add(1, 2) == 3", "assert add(1, 1) == 3"]),
    "objects": _prompt({"tests": [{"code": "assert add(1, 2) == 3"}, {"code": "assert 0"}]}),
    "mbpp": _prompt(test_list=["assert add(one, 2) == 3", "assert 0"], test_setup_code="one = 1"),
    "mbpp-imports": _prompt(
        test_list=["assert add(1, 2) == math.ceil(2.5)", "assert 0"], test_imports=["import math"]
    ),
    "apps-function": _prompt(
        input_output=json.dumps({"inputs": [[1, 2], [1, 1]], "outputs": [3, [3]], "fn_name": "add"})
    ),
}


@contained
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_of_the_tests_pass(layout: str) -> None:
    assert tasks.verify(LAYOUTS[layout], ADD, config=DataConfig()) == 0.5


@contained
def test_methods_of_a_solution_class() -> None:
    prompt = _prompt({"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"})
    program = "class Solution:\n    def add(self, a, b): return a + b"
    assert tasks.verify(prompt, program, config=DataConfig()) == 1.0


@contained
def test_humaneval() -> None:
    test = "def check(candidate):\n    assert candidate(2, 3) == 5"
    prompt = _prompt(test=test, entry_point="add")
    assert tasks.verify(prompt, ADD, config=DataConfig()) == 1.0
    assert tasks.verify(prompt, ADD.replace("+", "-"), config=DataConfig()) == 0.0


@contained
def test_the_sample_file() -> None:
    rows = [json.loads(line) for line in SAMPLES.read_text().splitlines()]
    total, twice = (_prompt(row["answer"]) for row in rows)
    assert tasks.verify(total, "print(sum(map(int, input().split())))", config=DataConfig()) == 1.0
    assert tasks.verify(total, "print(abs(int(input().split()[0])))", config=DataConfig()) == 1 / 3
    assert tasks.verify(twice, "def twice(text): return text * 2", config=DataConfig()) == 1.0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (_prompt(), "the row has no tests"),
        (_prompt("{"), "'answer' is not JSON"),
        (_prompt({"tests": "x"}), "tests are not JSON"),
        (_prompt({"tests": {"a": 1}}), "tests must be a list"),
        (_prompt({"tests": [1]}), "a test must be a statement"),
        (_prompt({"tests": [{"stdin": "1"}]}), "a test must be a statement"),
        (_prompt({"inputs": ["1"], "outputs": []}), "lists of one length"),
        (_prompt({"inputs": ["1"], "outputs": ["1"], "fn_name": "a; b"}), "no name of a function"),
        (_prompt({"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}), "a list of arguments"),
    ],
)
def test_rows_that_cannot_be_judged(prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Code().check_prompt(prompt)


def test_program_tests_output() -> None:
    prompt = _prompt({"tests": [{"input": "1", "output": "2"}, {"stdin": "3", "stdout": "4"}]})
    assert [(test.stdin, test.stdout) for test in program_tests(prompt)] == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize("text", ["```" * 50_000, "```python\n" * 20_000, "<answer>" * 50_000])
def test_a_long_hostile_response_is_read_at_once(text: str) -> None:
    start = time.monotonic()
    program_of(text)
    assert time.monotonic() - start < HANG_S


@given(st.text(alphabet="`py\n<answer>/ x=1", max_size=120))
def test_any_text_has_a_program_of_its_own_text(response: str) -> None:
    assert program_of(response) in response
    assert Code().answer_of(response) in response
