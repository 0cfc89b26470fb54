"""Maths answers: found in the response, equal as mathematics, and nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast import tasks
from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks.maths import Maths, final_answer
from passk_fast.tasks.sandbox import VerifierFailed

pytest.importorskip("math_verify")
HANG_S = 60.0
"""Seconds that only a hang can exceed, on however busy a machine."""


def _reward(gold: str, response: str) -> float:
    prompt = Prompt(id="0", text="?", answer=gold, task="maths")
    return tasks.verify(prompt, response, config=DataConfig())


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so \\boxed{7}", "7"),
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed {7}", "7"),
        ("\\fbox{7}", "7"),
        ("<answer> 7 </answer>", "7"),
        ("<answer>7</answer> and \\boxed{8}", "8"),
        ("\\boxed{7} and then \\boxed{8", "7"),
        ("work\n#### 1,260", "1,260"),
        ("The answer is 7.", "7"),
        ("The answer is: $7$", "$7$"),
        ("**Answer:** 7", "7"),
        ("Answer: 7\nAnswer: 8", "8"),
        ("I think it is 7", None),
        ("", None),
        ("\\boxed{", None),
    ],
)
def test_where_the_answer_stands(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer
    assert Maths().answer_of(response) == (response if answer is None else answer)


EQUAL = [
    ("7", "7"),
    ("7", "7.0"),
    ("7", "007"),
    ("-7", "- 7"),
    ("1234", "1,234"),
    ("0.5", "1/2"),
    ("1/2", "\\frac12"),
    ("\\frac12", "0.5"),
    ("\\frac{5}{2}", "x = \\frac52"),
    ("3\\frac12", "3.5"),
    ("1/3", "0.333333"),
    ("50\\%", "0.5"),
    ("10", "10\\text{ cm}"),
    ("90^\\circ", "90"),
    ("\\$5", "5"),
    ("\\sqrt{2}", "2^{1/2}"),
    ("x^2-x-6", "(x+2)(x-3)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("\\{1,2\\}", "2, 1"),
    ("(1,2)", "x=1, y=2"),
    ("[1,3)", "[1,3)"),
    ("(-\\infty,2]", "x \\le 2"),
    ("\\text{A}", "A"),
    ("2", "1+1=2"),
    ("204", "n = m = 204"),
    ("\\int_0^1 f(x) dx", "\\int_0^1 f(x) dx"),
]
UNEQUAL = [
    ("7", "8"),
    ("7", "-7"),
    ("7", "7.1"),
    ("2", "1,2"),
    ("2", "2 or 3"),
    ("2", "\\{2\\}, 3"),
    ("(1,2)", "(2,1)"),
    ("[1,3)", "[1,3]"),
    ("1/3", "0.33"),
    ("12", "1 2"),
    ("2", "x = 3, x = 2"),
    ("2", "\\text{two}"),
    ("2", "nan"),
    ("\\infty", "nan"),
    ("2", ""),
]
EXPLOITS = [
    ("2", "3=2"),
    ("2", "y=3=2"),
    ("2", "3+4=2"),
    ("2", "\\frac{9}{3}=2"),
    ("1", "\\int_0^1 1 dx"),
    ("5050", "\\sum_{k=1}^{100} k"),
    ("120", "\\prod_{k=1}^{5} k"),
    ("1", "\\lim_{x \\to 0} \\frac{\\sin x}{x}"),
    ("2", "__import__('os').system('true')"),
    ("2", "2" + " " * 2000 + "+ 0" * 500),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold: str, answer: str) -> None:
    assert _reward(gold, f"so \\boxed{{{answer}}}") == 1.0


@pytest.mark.parametrize(("gold", "answer"), UNEQUAL)
def test_different_answers(gold: str, answer: str) -> None:
    assert _reward(gold, f"so \\boxed{{{answer}}}") == 0.0


@pytest.mark.parametrize(("gold", "answer"), EXPLOITS)
def test_known_faults_of_the_comparison_earn_nothing(gold: str, answer: str) -> None:
    assert _reward(gold, f"so \\boxed{{{answer}}}") == 0.0


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", pytest.param("9!!!!!!!", marks=pytest.mark.slow)]
)
def test_answers_without_end_are_stopped(answer: str) -> None:
    start = time.monotonic()
    try:
        assert _reward("2", f"\\boxed{{{answer}}}") == 0.0
    except VerifierFailed as error:
        assert "no reward" in str(error)  # noqa: PT017 - either is right, a reward is not
    assert time.monotonic() - start < HANG_S
    assert _reward("2", "\\boxed{\\frac{4}{2}}") == 1.0, "the next one is judged"


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 50_000, "\\boxed{}" * 50_000, "answer is " * 50_000, "#### " * 50_000]
)
def test_a_long_hostile_response_is_read_at_once(text: str) -> None:
    start = time.monotonic()
    _reward("7", text)
    assert time.monotonic() - start < HANG_S


def test_rows_without_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="'answer' is empty"):
        Maths().check_prompt(Prompt(id="0", text="?", answer=" ", task="maths"))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    want = r"task 'maths' needs the package math-verify.*pip install -r requirements/maths\.txt"
    with pytest.raises(ConfigError, match=want):
        Maths().check_prompt(Prompt(id="0", text="?", answer="7", task="maths"))


@given(st.text(alphabet="\\boxed{}$ <answr>/#\n0123456789.,x", max_size=120))
def test_any_text_has_an_answer_or_none(response: str) -> None:
    answer = final_answer(response)
    assert answer is None or answer in response
    assert Maths().answer_of(response) in response


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_integers_are_compared_exactly(left: int, right: int) -> None:
    assert _reward(str(left), f"\\boxed{{{left}}}") == 1.0
    assert _reward(str(left), f"\\boxed{{{left:,}}}") == 1.0
    assert _reward(str(left), f"\\boxed{{{right}}}") == float(left == right)
