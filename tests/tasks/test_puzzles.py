"""Puzzles: every generator has a category, makes puzzles and pays its own answers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest

from passk_fast import tasks
from passk_fast.config import DataConfig, PuzzlesConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks.puzzle_categories import CATEGORIES, GENERATORS, category_of
from passk_fast.tasks.puzzles import Puzzles, chosen_generators
from passk_fast.tasks.sandbox import unavailable_reason

reasoning_gym = pytest.importorskip("reasoning_gym")
pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
FEW = ("countdown", "sudoku", "graph_color", "ransom_note", "isomorphic_strings", "word_ladder")


def _puzzles(*generators: str, train: int = 8, test: int = 4, **settings: object) -> Puzzles:
    config = PuzzlesConfig(
        generators=generators, train_per_generator=train, test_per_generator=test
    )
    return Puzzles(replace(config, **settings), seed=3)


def _made(generator: str, **settings: object) -> Prompt:
    return _puzzles(generator, train=1, test=1, **settings).train_prompts()[0]


def _wrapped(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def test_every_generator_of_the_package_has_one_category() -> None:
    from reasoning_gym.factory import DATASETS

    listed = [name for names in CATEGORIES.values() for name in names]
    assert len(CATEGORIES) == 7
    assert sorted(listed) == sorted(set(listed)) == sorted(set(DATASETS) - {"composite"})
    assert category_of("sudoku") == "grid"


@pytest.fixture(scope="module")
def one_of_each() -> list[Prompt]:
    """A training and a held-out puzzle of every generator."""
    task = _puzzles(train=1, test=1)
    return [*task.train_prompts(), *task.test_prompts()]


@pytest.fixture(scope="module")
def puzzle_of(one_of_each: list[Prompt]) -> dict[str, Prompt]:
    """The training puzzle of every generator."""
    return {str(p.columns["generator"]): p for p in one_of_each if "-train-" in p.id}


@pytest.mark.slow
@pytest.mark.sample
def test_every_generator_makes_puzzles_that_its_own_answer_solves(
    one_of_each: list[Prompt],
) -> None:
    assert len(one_of_each) == 2 * len(GENERATORS)
    wrong = {}
    for prompt in one_of_each:
        generator = str(prompt.columns["generator"])
        assert bool(prompt.answer) or generator in WITHOUT_ANSWER | {"polynomial_equations"}
        if prompt.answer:
            reward = tasks.verify(prompt, _wrapped(prompt.answer), config=DataConfig())
            wrong |= {generator: prompt.answer} if reward != 1.0 else {}
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.sample
def test_prompts_can_travel_as_json(one_of_each: list[Prompt]) -> None:
    for prompt in one_of_each:
        assert json.loads(json.dumps(prompt.columns)) == prompt.columns


def test_splits_are_disjoint_and_depend_on_the_seed_alone() -> None:
    task = _puzzles(*FEW)
    train, test = task.train_prompts(), task.test_prompts()
    assert not {p.text for p in train} & {p.text for p in test}
    assert len({p.text for p in train}) == len(train) == len({p.id for p in train}) == 8 * len(FEW)
    assert [p.columns["generator"] for p in test[: len(FEW)]] == list(FEW), "generators take turns"
    more = _puzzles(*FEW, train=3)
    assert more.test_prompts() == test, "the held-out split ignores the training settings"
    assert replace(task, seed=4).train_prompts() != train


def test_a_generator_with_few_puzzles_gives_what_it_has() -> None:
    task = _puzzles("tower_of_hanoi", train=500, test=5)
    train, test = task.train_prompts(), task.test_prompts()
    assert 0 < len(train) < 500
    assert not {p.text for p in train} & {p.text for p in test}


@pytest.mark.slow
def test_the_hash_seed_of_the_process_does_not_matter() -> None:
    script = (
        "from passk_fast.config import PuzzlesConfig\n"
        "from passk_fast.tasks.puzzles import Puzzles\n"
        f"config = PuzzlesConfig(generators={FEW}, train_per_generator=8, test_per_generator=4)\n"
        "print([p.text for p in Puzzles(config, seed=3).train_prompts()])"
    )
    want = [p.text for p in _puzzles(*FEW).train_prompts()]
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == repr(want)


def test_difficulty_and_options() -> None:
    easy, hard = _made("countdown", difficulty=0), _made("countdown", difficulty=4)
    assert easy.columns["config"] != hard.columns["config"]
    sized = _made("countdown", options=("countdown.min_numbers=6", "countdown.max_numbers=6"))
    assert len(json.loads(str(sized.columns["metadata"]))["numbers"]) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": ("countdown.wrong=1",)}, "a generator refused its settings.*wrong"),
        ({"options": ("countdown.min_numbers=-1",)}, "a generator refused its settings"),
        ({"options": ("nothing.size=1",)}, "names no generator"),
    ],
)
def test_bad_options_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _made("countdown", **settings)


def test_bad_names_and_forms() -> None:
    with pytest.raises(ConfigError, match="'sudokku' is no generator and no category"):
        chosen_generators(PuzzlesConfig(generators=("sudokku",)))
    with pytest.raises(ConfigError, match=r"must have the form GENERATOR\.SETTING=VALUE"):
        PuzzlesConfig(options=("countdown",))
    with pytest.raises(ConfigError, match=r"difficulty must be in \[0, 20\]"):
        PuzzlesConfig(difficulty=-1)
    assert chosen_generators(PuzzlesConfig(generators=("graph", "maze", "path_star"))) == [
        *CATEGORIES["graph"],
        "maze",
    ]


EXPLOITS = [
    ("complex_arithmetic", "nan"),
    ("complex_arithmetic", "nan+nanj"),
    ("game_of_life_halting", "junk"),
    ("number_sorting", "[NaN, NaN, NaN]"),
    ("puzzle24", "6*4*1*1"),
    ("coin_flip", "1e-400"),
    ("coin_flip", "1e999999999"),
    ("countdown", "S.One"),
    ("simple_integration", "Integral(x, x)"),
    ("polynomial_multiplication", "expand((x+1)*(x+2))"),
]


@pytest.mark.parametrize(("generator", "answer"), EXPLOITS)
def test_known_exploits_earn_nothing(
    puzzle_of: dict[str, Prompt], generator: str, answer: str
) -> None:
    prompt = puzzle_of[generator]
    assert tasks.verify(prompt, _wrapped(answer), config=DataConfig()) == 0.0


def test_exploits_made_for_the_puzzle_earn_nothing(puzzle_of: dict[str, Prompt]) -> None:
    for generator, column in (("simple_integration", "integrand"),):
        prompt = puzzle_of[generator]
        metadata = json.loads(str(prompt.columns["metadata"]))
        answer = f"Integral({metadata[column]}, {metadata['variable']})"
        assert tasks.verify(prompt, _wrapped(answer), config=DataConfig()) == 0.0
    prompt = puzzle_of["countdown"]
    metadata = json.loads(str(prompt.columns["metadata"]))
    answer = f"{metadata['target']} + 0*({'+'.join(map(str, metadata['numbers']))})"
    assert tasks.verify(prompt, _wrapped(answer), config=DataConfig()) == 0.0


def test_an_answer_without_its_tag_earns_nothing(puzzle_of: dict[str, Prompt]) -> None:
    prompt = puzzle_of["sudoku"]
    assert tasks.verify(prompt, prompt.answer, config=DataConfig()) == 0.0
    assert tasks.verify(prompt, f"so\n<answer>\n{prompt.answer}\n</answer>", config=DataConfig())


def test_partial_credit_is_by_setting(puzzle_of: dict[str, Prompt]) -> None:
    prompt = puzzle_of["spell_backward"]
    wrong = prompt.answer[:-1] + "é"
    half = DataConfig(puzzles=PuzzlesConfig(partial_credit=True))
    assert 0.0 < tasks.verify(prompt, _wrapped(wrong), config=half) < 1.0
    assert tasks.verify(prompt, _wrapped(wrong), config=DataConfig()) == 0.0


def test_rows_must_be_puzzles(puzzle_of: dict[str, Prompt]) -> None:
    task, prompt = _puzzles(), puzzle_of["sudoku"]
    task.check_prompt(prompt)
    with pytest.raises(ValueError, match="'metadata' is missing"):
        task.check_prompt(replace(prompt, columns={"generator": "sudoku", "config": "{}"}))
    with pytest.raises(ValueError, match="'generator' names none: 'x'"):
        task.check_prompt(replace(prompt, columns={**prompt.columns, "generator": "x"}))


@pytest.mark.slow
def test_solutions_for_the_warm_start() -> None:
    config = DataConfig(generate="puzzles", puzzles=_puzzles("binary_matrix", "rush_hour").config)
    fresh = list(islice(tasks.fresh_solutions(config, 1), 70))
    assert len(set(fresh)) == 70
    assert not {p.text for p in tasks.test_prompts(config)} & {text for text, _ in fresh}
    used = {c for text, solution in fresh for c in text + solution}
    assert used <= set(tasks.alphabet(config))
    assert tasks.train_prompts(config)[0].task == "puzzles"
    with pytest.raises(ConfigError, match="no puzzle with a stored answer"):
        next(_puzzles("rush_hour").solutions(1))
