"""Every built-in verifier against every hostile output: no execution, no reward, bounded time."""

from __future__ import annotations

import json
import time
import unicodedata
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest

from passk_fast import tasks
from passk_fast.config import DataConfig, MazeConfig, PuzzlesConfig
from passk_fast.data.types import Prompt
from passk_fast.tasks.answers import tagged_answer
from passk_fast.tasks.hostile import hostile_outputs
from passk_fast.tasks.puzzle_categories import GENERATORS
from passk_fast.tasks.puzzles import Puzzles
from passk_fast.tasks.sandbox import VerifierFailed, unavailable_reason

contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)
GRID = "*****\n*S..*\n***.*\n*E..*\n*****"


EVERY = [9, pytest.param(1, marks=pytest.mark.slow)]
"""Each ninth output of those that take a sandbox is tried by default, all in the slow tests."""


def _rewarded(prompt: Prompt, marker: Path, config: DataConfig, every: int = 1) -> list[str]:
    """Hostile outputs that earned something; none was executed outside, none took for ever."""
    found = []
    for output in islice(hostile_outputs(marker), 0, None, every):
        start = time.monotonic()
        try:
            if tasks.verify(prompt, output.text, config=config) > 0.0:
                found.append(output.text[:100])
        except VerifierFailed:
            continue
        finally:
            assert not marker.exists(), output.text[:200]
            assert time.monotonic() - start < 60.0, output.text[:200]
    return found


def test_there_are_hundreds_of_different_ones(tmp_path: Path) -> None:
    texts = [output.text for output in hostile_outputs(tmp_path / "x")]
    assert len(set(texts)) >= 300


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("style", ["prose", "compact"])
def test_maze(style: str, lenient: bool, tmp_path: Path) -> None:
    prompt = Prompt(id="0", text=GRID, answer="RRDDLL", task="maze")
    config = DataConfig(maze=MazeConfig(style=style, lenient=lenient))
    assert _rewarded(prompt, tmp_path / "x", config) == []


def test_exact(tmp_path: Path) -> None:
    prompt = Prompt(id="0", text="?", answer="Wien", task="exact")
    assert _rewarded(prompt, tmp_path / "x", DataConfig()) == []


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("gold", ["73", "\\frac{5}{7}"])
def test_maths(gold: str, every: int, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    prompt = Prompt(id="0", text="?", answer=gold, task="maths")
    assert _rewarded(prompt, tmp_path / "x", DataConfig(), every) == []


@contained
@pytest.mark.parametrize("every", EVERY)
def test_code(every: int, tmp_path: Path) -> None:
    answer = json.dumps(["assert double(2) == 4"])
    prompt = Prompt(id="0", text="?", answer=answer, task="code")
    assert _rewarded(prompt, tmp_path / "x", DataConfig(), every) == []


EXECUTING = ("countdown", "puzzle24", "simple_integration", "polynomial_multiplication", "n_queens")


@lru_cache
def _puzzles(generators: tuple[str, ...]) -> list[Prompt]:
    settings = PuzzlesConfig(generators=generators, train_per_generator=12, test_per_generator=1)
    return Puzzles(settings, seed=1).train_prompts()


def _puzzle(generator: str) -> Prompt:
    """The one of twelve puzzles whose answer is the least likely to be guessed."""
    made = _puzzles(EXECUTING if generator in EXECUTING else GENERATORS)
    ours = [prompt for prompt in made if prompt.columns["generator"] == generator]
    return max(ours, key=lambda prompt: len(prompt.answer))


def _is_answer(text: str, prompt: Prompt) -> bool:
    """A text that happens to be right, such as `True`, is no exploit."""
    answer = unicodedata.normalize("NFKC", tagged_answer(text))
    return answer.lower() == prompt.answer.strip().lower()


@contained
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("generator", EXECUTING)
def test_puzzles_that_execute_answers(generator: str, every: int, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    assert _rewarded(_puzzle(generator), tmp_path / "x", DataConfig(), every) == []


@contained
@pytest.mark.slow
@pytest.mark.parametrize("generator", sorted(set(GENERATORS) - set(EXECUTING)))
def test_other_puzzles(generator: str, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    prompt = _puzzle(generator)
    found = _rewarded(prompt, tmp_path / "x", DataConfig())
    assert [text for text in found if not _is_answer(text, prompt)] == []
