"""Equality of two answers by math-verify, without its time-outs: the caller has a deadline.

Only its LaTeX parser is used, which executes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Derivative, Eq, Integral, Limit, Product, Sum

_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]
_UNSOLVED = (Derivative, Integral, Limit, Product, Sum)
"""An answer that holds one restates the problem for the verifier to solve."""


def _parsed(text: str) -> list[object]:
    box = text if "\\boxed" in text else f"\\boxed{{{text}}}"
    found: list[object] = parse(
        box, extraction_config=_LATEX, parsing_timeout=None, fallback_mode="no_fallback"
    )
    return found


def _parts(expression: Basic) -> Iterator[Basic]:
    """The expression and all that it is made of, `And` in the form math-verify keeps included."""
    yield expression
    for part in getattr(expression, "_unsorted_args", expression.args):
        if isinstance(part, Basic):
            yield from _parts(part)


def _holds(equation: Eq) -> bool:
    """False for an equation of numbers that differ; those with variables are taken as they are."""
    if equation.free_symbols:
        return True
    return bool(abs((equation.lhs - equation.rhs).evalf(30)) < 1e-9)


def equal(gold: str, answer: str) -> float:
    """1.0 if math-verify takes the answer for the gold one, else 0.0.

    0.0 also for what it would accept wrongly: a false equation that ends in the answer (`3=2` for
    2), and an integral, sum, product, limit or derivative that the gold answer has not.
    """
    wanted, given = _parsed(gold), _parsed(answer)
    parts = [part for e in given if isinstance(e, Basic) for part in _parts(e)]
    if any(isinstance(part, Eq) and not _holds(part) for part in parts):
        return 0.0
    unsolved = any(isinstance(part, _UNSOLVED) for part in parts)
    if unsolved and not any(isinstance(e, Basic) and e.has(*_UNSOLVED) for e in wanted):
        return 0.0
    return float(verify(wanted, given, timeout_seconds=None, allow_set_relation_comp=True))


def warm() -> float:
    """Fill the caches of the parser and of SymPy, which every verdict would fill again; 0."""
    for gold, answer in (("\\frac{1}{2}", "x=0.5"), ("\\{1,2\\}", "(1,2)"), ("x^2+1", "1+x^2")):
        equal(gold, answer)
    return 0.0
