"""How puzzles are made: settings of a level, distinct puzzles, two splits, and what is refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import islice

import pytest

from passk_fast.config import PuzzlesConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks.puzzle_categories import CATEGORIES, category_of
from passk_fast.tasks.puzzles import Puzzles, chosen_generators
from passk_fast.tasks.sandbox import SandboxError, VerifierFailed, unavailable_reason

reasoning_gym = pytest.importorskip("reasoning_gym")

from passk_fast.tasks import puzzle_generation  # noqa: E402 - needs the package
from passk_fast.tasks.puzzle_generation import Request, configuration, puzzles, split  # noqa: E402

contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)


def _request(**changes: object) -> Request:
    request: Request = {
        "generators": ["countdown", "spell_backward"],
        "split": "train",
        "seed": 3,
        "difficulty": 0,
        "options": {},
        "train_per_generator": 5,
        "test_per_generator": 2,
    }
    request.update(changes)
    return request


def test_a_level_of_the_curriculum_sets_the_generator() -> None:
    easy, hard = (configuration("countdown", level, {}) for level in (0, 2))
    assert easy["min_numbers"] == 3
    assert "max_numbers" not in easy, "6 is its default"
    assert hard["max_numbers"] == 12


def test_beyond_the_last_level_the_last_one_is_taken() -> None:
    assert configuration("countdown", 20, {}) == configuration("countdown", 5, {})


def test_options_stand_above_the_level() -> None:
    made = configuration("countdown", 0, {"max_numbers": 5})
    assert (made["min_numbers"], made["max_numbers"]) == (3, 5)
    with pytest.raises(TypeError, match="no_such_setting"):
        configuration("countdown", 0, {"no_such_setting": 1})


def test_only_settings_that_differ_from_the_defaults_are_named() -> None:
    made = configuration("countdown", 0, {"shuffle": True, "min_target": 7})
    assert "shuffle" not in made
    assert made["min_target"] == 7
    assert not {"seed", "size"} & made.keys()


def test_a_level_that_the_generator_refuses_falls_to_the_nearest_below() -> None:
    """caesar_cipher's curriculum names rotations of 50, of which there are 25."""
    made = configuration("caesar_cipher", 3, {})
    assert made == configuration("caesar_cipher", 1, {})
    assert made != configuration("caesar_cipher", 0, {})
    assert made.get("max_rotation", 25) == 25, "the default"


def test_without_a_level_that_works_the_defaults_are_taken() -> None:
    options: dict[str, object] = {"min_numbers": 99}
    assert configuration("countdown", 0, options) == options


def test_sokoban_gets_fewer_boxes_unless_they_are_asked_for() -> None:
    assert configuration("sokoban", 0, {})["max_boxes"] == 4
    assert configuration("sokoban", 0, {"max_boxes": 6})["max_boxes"] == 6


def test_puzzles_are_distinct_and_hold_all_that_a_verifier_needs() -> None:
    config = {"min_word_len": 3, "max_word_len": 3}
    made = list(puzzles("spell_backward", config, 1, 300))
    assert len({puzzle["question"] for puzzle in made}) == len(made) <= 300
    for puzzle in made:
        assert puzzle["generator"] == "spell_backward"
        assert json.loads(str(puzzle["config"])) == config
        word = json.loads(str(puzzle["metadata"]))["word"]
        assert puzzle["answer"] == word[::-1]


def test_a_seed_makes_the_same_puzzles_again() -> None:
    first, again, other = (
        [puzzle["question"] for puzzle in puzzles("countdown", {}, seed, 5)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("generator", ["countdown", "spell_backward"])
def test_no_held_out_puzzle_is_trained_on(generator: str) -> None:
    few = _request(options={"spell_backward": {"min_word_len": 3, "max_word_len": 3}})
    train, test = (
        [puzzle["question"] for puzzle in split({**few, "split": name}, generator)]
        for name in ("train", "test")
    )
    assert (len(train), len(test)) == (5, 2)
    assert not set(train) & set(test)
    more = [p["question"] for p in split({**few, "train_per_generator": 50}, generator)]
    assert more[:5] == train, "more puzzles begin with the same ones"
    assert not set(more) & set(test)


def test_the_program_answers_with_one_puzzle_per_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(_request())))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    puzzle_generation.main()
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["generator"] for row in rows] == ["countdown"] * 5 + ["spell_backward"] * 5


def test_names_of_generators_and_categories() -> None:
    assert [category_of(name) for name in ("countdown", "sudoku", "ab")] == [
        "arithmetic",
        "grid",
        "sequential",
    ]
    with pytest.raises(KeyError):
        category_of("composite")
    twice = PuzzlesConfig(generators=("sudoku", "grid", "sudoku"))
    chosen = chosen_generators(twice)
    assert chosen[0] == "sudoku"
    assert sorted(chosen) == sorted(CATEGORIES["grid"])
    with pytest.raises(ConfigError, match=r"'composite' is no generator .*categories: crypto, ari"):
        chosen_generators(PuzzlesConfig(generators=("composite",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": 21}, r"data\.puzzles\.difficulty must be in \[0, 20\], got 21"),
        ({"train_per_generator": 0}, r"data\.puzzles\.train_per_generator must be .*got 0"),
        ({"test_per_generator": -1}, r"data\.puzzles\.test_per_generator must be .*got -1"),
        ({"options": ("countdown.min_numbers",)}, r"must have the form GENERATOR\.SETTING=VALUE"),
        ({"options": ("countdown=3",)}, r"such as 'countdown\.min_numbers=3', got 'countdown=3'"),
        ({"options": ("countdown.min_numbers=",)}, "must have the form"),
    ],
)
def test_settings_that_no_run_could_have(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PuzzlesConfig(), **settings)


@contained
@pytest.mark.parametrize("path", ["words3to10.txt", '"words3to10.txt"'])
def test_values_of_options_are_json_or_else_text(path: str) -> None:
    options = (f"spell_backward.data_file={path}", "spell_backward.max_word_len=3")
    config = PuzzlesConfig(
        generators=("spell_backward",),
        options=options,
        train_per_generator=2,
        test_per_generator=1,
    )
    for prompt in Puzzles(config, seed=0).train_prompts():
        assert len(prompt.answer) == 3
        assert prompt.text.startswith("Spell this word backward")
        assert prompt.text.endswith("inside <answer> </answer> tags.")


PUZZLE = Prompt(
    id="0",
    text="?",
    answer="tac",
    task="puzzles",
    columns={"generator": "spell_backward", "config": "{}", "metadata": "{}"},
)


def test_where_nothing_contains_answers_puzzles_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Puzzles(PuzzlesConfig(generators=("countdown",)), seed=0)
    monkeypatch.setattr("passk_fast.tasks.puzzles.unavailable_reason", lambda: "namespaces: none")
    for attempt in (lambda: task.check_prompt(PUZZLE), task.train_prompts, task.test_prompts):
        with pytest.raises(SandboxError, match=r"'puzzles' executes answers.*namespaces: none\. "):
            attempt()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    want = r"'puzzles' needs the package reasoning-gym.*pip install -r requirements/puzzles\.txt"
    with pytest.raises(ConfigError, match=want):
        task.check_prompt(PUZZLE)


@contained
def test_a_puzzle_that_its_scorer_cannot_read_is_no_reward() -> None:
    task = Puzzles(PuzzlesConfig(), seed=0)
    for column, text in (("metadata", "{"), ("config", '{"min_word_len": -1}')):
        broken = replace(PUZZLE, columns={**PUZZLE.columns, column: text})
        with pytest.raises(VerifierFailed, match=r"no reward: raised|cannot be prepared"):
            task.verify(broken, "<answer>cat</answer>")
    assert task.verify(PUZZLE, "<answer>tac</answer>") == 1.0
    assert task.verify(PUZZLE, "tac") == 0.0


@contained
def test_prompts_of_a_generator_are_no_more_than_asked() -> None:
    config = PuzzlesConfig(generators=("gcd",), train_per_generator=3, test_per_generator=2)
    task = Puzzles(config, seed=1)
    assert [p.id for p in task.train_prompts()] == [f"puzzle-train-gcd-{i}" for i in range(3)]
    assert [p.id for p in task.test_prompts()] == [f"puzzle-test-gcd-{i}" for i in range(2)]
    solutions = list(islice(task.solutions(seed=5), 3))
    assert all(text.endswith("</answer>") for _, text in solutions)
