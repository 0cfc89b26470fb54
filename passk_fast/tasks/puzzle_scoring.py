"""Scores answers to reasoning-gym's puzzles. Imported in the sandbox alone: scorers run answers.

Where a scorer can be deceived, a rule of ours stands before it: such an answer earns 0 and is not
scored at all.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

Entry = dict[str, object]
Rule = Callable[[str, Entry], bool]

_CLOSE_IS_RIGHT = ("complex_arithmetic", "polynomial_equations")
"""Their score falls with the distance from the exact numbers, which answers give rounded."""
_NOT_FINITE = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)
_CALCULATION = re.compile(r"[\d\s+\-*/().]*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "sec",
        "csc",
        "cot",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "exp",
        "log",
        "ln",
        "sqrt",
        "Abs",
        "pi",
        "E",
    ]
)
_LONGEST_EXPRESSION = 2000


@lru_cache(maxsize=256)
def scorer(generator: str, config: str) -> ProceduralDataset:
    """The data set whose `score_answer` judges puzzles made with a configuration (JSON)."""
    dataset, settings = DATASETS[generator]
    return dataset(config=settings(**json.loads(config)))


def warm(generator: str, config: str) -> float:
    """Make the scorer, which `scorer` then has ready; returns 0."""
    scorer(generator, config)
    return 0.0


def score(generator: str, config: str, answer: str, oracle: str, metadata: str) -> float:
    """The share of credit in [0, 1] that reasoning-gym gives, 0 where a rule refuses the answer.

    `metadata` is the puzzle's, as JSON; `oracle` is the stored answer, "" where there is none.
    """
    values = json.loads(metadata)
    if generator in ("arc_agi", "rearc"):
        values = {**values, "output": _tuples(values["output"])}
    entry: Entry = {"answer": oracle, "metadata": values}
    if oracle and answer == oracle:
        return 1.0
    if not all(rule(answer, entry) for rule in (_finite, *_RULES.get(generator, ()))):
        return 0.0
    value = float(scorer(generator, config).score_answer(answer, entry))
    return 1.0 if generator in _CLOSE_IS_RIGHT and value >= 0.99 else value


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _finite(answer: str, entry: Entry) -> bool:
    """complex_arithmetic pays 1 for `nan`, number_sorting for `[NaN, NaN]`."""
    return not _NOT_FINITE.search(answer) or bool(_NOT_FINITE.search(str(entry["answer"])))


def _short(answer: str, entry: Entry) -> bool:
    """`1e999999999` is a number that takes all memory to write out."""
    return len(answer) <= 50 and not re.search(r"e[+-]?\d{4}", answer, re.IGNORECASE)


def _plain_calculation(answer: str, entry: Entry) -> bool:
    """+ - * / and parentheses over the puzzle's numbers, each once; the text is executed."""
    metadata = entry["metadata"]
    assert isinstance(metadata, Mapping)
    if len(answer) > _LONGEST_EXPRESSION or not answer.isascii():
        return False
    if not _CALCULATION.fullmatch(answer):
        return False
    if "**" in answer or "//" in answer:
        return False
    used = re.findall(r"[\d.]+", answer)
    return sorted(used) == sorted(str(number) for number in metadata["numbers"])


def _plain_expression(answer: str, entry: Entry) -> bool:
    """Letters and elementary functions: no `Integral(f)`, `expand(f)`, and no other code."""
    if len(answer) > _LONGEST_EXPRESSION or not answer.isascii():
        return False
    if not re.fullmatch(r"[\w\s+\-*/().]*", answer) or re.search(r"\.\s*[A-Za-z_]", answer):
        return False
    if re.search(r"\*\*\s*\(?\s*[\d.]*\s*\*\*|\*\*\s*\d{4}", answer):
        return False  # towers of powers, which take all memory
    return all(len(word) == 1 or word in _FUNCTIONS for word in _WORD.findall(answer))


def _literal(answer: str, entry: Entry) -> bool:
    """A list or text; anything else would be executed."""
    if len(answer) > 50 * _LONGEST_EXPRESSION:
        return False
    try:
        ast.literal_eval(answer)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _board_or_literal(answer: str, entry: Entry) -> bool:
    """n_queens has many right boards; what is none of them would be executed."""
    metadata = entry["metadata"]
    assert isinstance(metadata, Mapping)
    return answer in metadata["valid_answers"] or _literal(answer, entry)


def _same_text(answer: str, entry: Entry) -> bool:
    """game_of_life_halting takes any text for True."""
    return answer.strip().lower() == str(entry["answer"]).strip().lower()


def _within_one_percent(answer: str, entry: Entry) -> bool:
    """coin_flip takes 0 for every small probability."""
    try:
        given, wanted = (Fraction(text.replace(",", "")) for text in (answer, str(entry["answer"])))
    except (ValueError, ZeroDivisionError):
        return False
    return abs(given - wanted) <= abs(wanted) / 100


def _empty_only_if_empty(answer: str, entry: Entry) -> bool:
    """polynomial_equations takes any text without numbers for "no solutions"."""
    return bool(entry["answer"]) or not answer.strip()


_RULES: dict[str, tuple[Rule, ...]] = {
    "binary_matrix": (_literal,),
    "coin_flip": (_short, _within_one_percent),
    "countdown": (_plain_calculation,),
    "game_of_life_halting": (_same_text,),
    "intermediate_integration": (_plain_expression,),
    "n_queens": (_board_or_literal,),
    "polynomial_equations": (_empty_only_if_empty,),
    "polynomial_multiplication": (_plain_expression,),
    "puzzle24": (_plain_calculation,),
    "simple_integration": (_plain_expression,),
    "spiral_matrix": (_literal,),
    "string_insertion": (_literal,),
}
