"""The rules before reasoning-gym's scorers: what is right passes them, what deceives does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

reasoning_gym = pytest.importorskip("reasoning_gym")

from passk_fast.tasks.puzzle_scoring import score  # noqa: E402 - needs the package


def _score(generator: str, answer: str, oracle: str = "", **metadata: object) -> float:
    return score(generator, "{}", answer, oracle, json.dumps(metadata))


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("94*4 - 61 - 6", 1.0),
        ("(94 * 4) - (61 + 6)", 1.0),
        ("-6 - 61 + 4*94", 1.0),
        ("309", 0.0),
        ("309 + 0*(6 + 61 + 94 + 4)", 0.0),
        ("94*4 - 61 - 06", 0.0),
        ("94**4 - 61 - 6", 0.0),
        ("94*4 - 61 - 6 + S.Zero", 0.0),
        ("94*4 - 61 - 6 # comment", 0.0),
        ("94*4 - 61 - 6; 1", 0.0),
        ("９４*4 - 61 - 6", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(answer: str, reward: float) -> None:
    got = _score("countdown", answer, numbers=[6, 61, 94, 4], target=309)
    assert got == reward or (reward == 0.0 and got < 0.1), "0.01 and 0.05 are for a wrong format"


@pytest.mark.parametrize(
    ("answer", "solved"),
    [("10*(8 - 5) - 6", True), ("6*4*1*1", False), ("24", False), ("8*5 - 10 - 6", True)],
)
def test_puzzle24_counts_the_numbers_of_the_puzzle(answer: str, solved: bool) -> None:
    assert (_score("puzzle24", answer, numbers=[8, 5, 10, 6]) == 1.0) is solved


@pytest.mark.parametrize(
    ("answer", "solved"),
    [
        ("x**2 + C", True),
        ("x**2", True),
        ("x*x + 7", True),
        ("x**2 + sin(1)", True),
        ("2*x", False),
        ("Integral(2*x, x)", False),
        ("integrate(2*x, x)", False),
        ("x.__class__", False),
        ("x**2 + __import__('os').getpid()*0", False),
        ("9**9**9**9", False),
        ("x**99999", False),
        ("lambda: x**2", False),
        ("x**2 + ２", False),
    ],
)
def test_integrals_are_written_out(answer: str, solved: bool) -> None:
    got = _score("simple_integration", answer, integrand="2*x", variable="x")
    assert (got == 1.0) is solved


@pytest.mark.parametrize(
    ("answer", "solved"),
    [("x**2 - 1", True), ("-1 + x**2", True), ("expand((x-1)*(x+1))", False), ("x**2", False)],
)
def test_products_are_expanded_by_the_model(answer: str, solved: bool) -> None:
    got = _score("polynomial_multiplication", answer, oracle="x**2 - 1", variables=["x"])
    assert (got == 1.0) is solved


@pytest.mark.parametrize(
    ("generator", "answer", "oracle", "reward"),
    [
        ("game_of_life_halting", "True", "True", 1.0),
        ("game_of_life_halting", "true", "True", 1.0),
        ("game_of_life_halting", "False", "True", 0.0),
        ("game_of_life_halting", "it halts", "True", 0.0),
        ("polynomial_equations", "", "", 1.0),
        ("polynomial_equations", "none", "", 0.0),
        ("polynomial_equations", "-0.7757, 1.97", "-0.7757, 1.9717", 1.0),
        ("polynomial_equations", "nan", "1.0", 0.0),
        ("coin_flip", "0.25", "0.25", 1.0),
        ("coin_flip", "1/4", "0.25", 1.0),
        ("coin_flip", "0", "0.00003", 0.0),
        ("coin_flip", "1e9999999", "0.25", 0.0),
        ("binary_matrix", "0 1\n1 0", "0 1\n1 0", 1.0),
        ("binary_matrix", "[[0, 1], [1, 0]]", "0 1\n1 0", 0.1),
        ("binary_matrix", "[[0]]*10**9", "0 1\n1 0", 0.0),
        ("spiral_matrix", "[1, 2]", "1 2", 0.1),
        ("spiral_matrix", "exit()", "1 2", 0.0),
        ("string_insertion", "['A', 'B']", "AB", 0.1),
        ("string_insertion", "open('x', 'w')", "AB", 0.0),
    ],
)
def test_rules(generator: str, answer: str, oracle: str, reward: float) -> None:
    assert _score(generator, answer, oracle) == pytest.approx(reward)


def test_complex_numbers_are_right_when_close() -> None:
    for answer, reward in (("3.0 + 4.0i", 1.0), ("3.001+4i", 1.0), ("nan", 0.0), ("nan+nani", 0.0)):
        assert _score("complex_arithmetic", answer, "x", result=[3.0, 4.0]) == reward
    assert 0.0 < _score("complex_arithmetic", "3.5 + 4i", "x", result=[3.0, 4.0]) < 1.0


def test_sorting_refuses_numbers_that_are_none() -> None:
    metadata = {"direction": "ascending"}
    assert _score("number_sorting", "[1, 2]", "['1', '2']".replace("'", '"'), **metadata) == 1.0
    assert _score("number_sorting", "[NaN, NaN]", '["1", "2"]', **metadata) == 0.0


def test_any_queens_board_that_is_valid() -> None:
    boards = ["Q _\n_ Q", "_ Q\nQ _"]
    for answer, reward in ((boards[1], 1.0), ("Q Q\n_ _", 0.0), ("[['Q', '_'], ['_', 'Q']]", 0.5)):
        assert _score("n_queens", answer, boards[0], valid_answers=boards) == reward


@settings(max_examples=300)
@given(st.text(alphabet="0123456789+-*/(). x", max_size=40))
def test_no_calculation_is_scored_without_the_numbers_of_the_puzzle(answer: str) -> None:
    got = _score("countdown", answer, numbers=[71, 83], target=154)
    assert got < 1.0 or {"71", "83"} <= set(answer.replace("+", " ").split())
