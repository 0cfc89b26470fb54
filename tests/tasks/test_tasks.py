"""Splits, the built-in verifiers and the alphabet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passk_fast import tasks
from passk_fast.config import DataConfig, MazeConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.tasks import maze

SMALL = MazeConfig(train_sizes=(7, 9), train_per_size=60, test_sizes=(7, 11), test_per_size=20)


def _grids(prompts: Iterable[Prompt]) -> set[str]:
    return {"\n".join(maze.grid_of(p.text)) for p in prompts}


def mazes() -> st.SearchStrategy[MazeConfig]:
    """Settings of all sizes and counts, the smallest size nearly used up."""
    sizes = st.lists(st.sampled_from([5, 7, 9]), min_size=1, max_size=2, unique=True)
    return st.builds(
        MazeConfig,
        train_sizes=sizes.map(tuple),
        test_sizes=sizes.map(tuple),
        train_per_size=st.integers(1, 60),
        test_per_size=st.integers(1, 12),
    )


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_distinct_and_disjoint(seed: int) -> None:
    config = DataConfig(maze=SMALL, seed=seed)
    train, test = list(tasks.train_prompts(config)), list(tasks.test_prompts(config))
    assert (len(train), len(test)) == (120, 40)
    assert len(_grids(train) | _grids(test)) == 160
    assert len({p.id for p in train + test}) == 160
    task = tasks.find_task("maze", config)
    assert all(task.verify(p, maze.render_solution("prose", p.answer)) == 1.0 for p in train + test)


def test_splits_depend_on_the_seed_alone() -> None:
    config = DataConfig(maze=SMALL)
    assert tasks.train_prompts(config) == tasks.train_prompts(config)
    assert tasks.test_prompts(config) == tasks.test_prompts(config)
    other = DataConfig(maze=SMALL, seed=1)
    assert tasks.test_prompts(config) != tasks.test_prompts(other)


def test_held_out_split_ignores_the_training_settings() -> None:
    bigger = MazeConfig(train_sizes=(13,), train_per_size=2, test_sizes=(7, 11), test_per_size=20)
    assert tasks.test_prompts(DataConfig(maze=SMALL)) == tasks.test_prompts(DataConfig(maze=bigger))


@settings(deadline=None, max_examples=20)
@given(mazes(), mazes(), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_nothing_that_is_trained_on_is_held_out_under_any_settings(
    trained: MazeConfig, tested: MazeConfig, seed: int, other_seed: int, fresh: bool
) -> None:
    """One run trains, another evaluates, with other sizes, counts, seeds; small sizes repeat."""
    training = DataConfig(maze=replace(trained, fresh=fresh), seed=seed)
    held_out = _grids(tasks.test_prompts(DataConfig(maze=tested, seed=other_seed)))
    assert not held_out & _grids(tasks.train_prompts(training))
    solutions = islice(tasks.fresh_solutions(training, seed), 50)
    warm_start = {"\n".join(maze.grid_of(text)) for text, _ in solutions}
    assert not held_out & warm_start


def test_fresh_mazes_are_made_by_number() -> None:
    chosen = MazeConfig(train_sizes=(9, 15), train_per_size=30, fresh=True)
    prompts = tasks.train_prompts(DataConfig(maze=chosen))
    shown = list(prompts)
    assert len(prompts) == len(shown) == 60
    assert len(_grids(shown)) == 60
    assert shown == [prompts[i] for i in range(60)] == prompts[:60]
    assert [len(maze.grid_of(p.text)) for p in shown[:4]] == [9, 15, 9, 15]
    far = prompts[10**9 + 1]
    assert far == prompts[10**9 + 1]
    assert (far.id, far.text in {p.text for p in shown}) == ("maze-fresh-15-1000000001", False)
    other = tasks.train_prompts(DataConfig(maze=chosen, seed=1))
    assert not _grids(shown) & _grids(other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "rows.jsonl"}, r"they come from data\.train"),
        ({"generate": "puzzles"}, r"they come from data\.generate = 'puzzles'"),
        ({"curriculum": 0.5}, r"data\.curriculum = 0\.5 with data\.maze\.fresh"),
    ],
)
def test_fresh_mazes_are_refused_where_they_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataConfig(maze=MazeConfig(fresh=True), **options)
    DataConfig(maze=MazeConfig(fresh=True), test="rows.jsonl")


def test_paper_split_sizes() -> None:
    test = tasks.test_prompts(DataConfig())
    sizes = [len(maze.grid_of(p.text)) for p in test]
    assert [sizes.count(size) for size in range(7, 22, 2)] == [75, *[100] * 7]
    assert sizes[:16] == [*range(7, 22, 2)] * 2, "sizes take turns"


def test_too_small_a_space_is_an_error() -> None:
    config = DataConfig(maze=MazeConfig(train_sizes=(5,), test_sizes=(5,), test_per_size=20))
    with pytest.raises(ConfigError, match=r"only 13 of 20 .*held-out split.*test_per_size"):
        tasks.test_prompts(config)
    with pytest.raises(ConfigError, match=r"only 71 of 10000 .*training split.*train_per_size"):
        tasks.train_prompts(config)


@pytest.mark.parametrize("style", ["prose", "compact"])
def test_fresh_solutions(style: str) -> None:
    chosen = MazeConfig(train_sizes=(5,), test_sizes=(5,), test_per_size=12, style=style)
    config = DataConfig(maze=chosen)
    fresh = list(islice(tasks.fresh_solutions(config, 3), 300))
    assert fresh == list(islice(tasks.fresh_solutions(config, 3), 300))
    assert fresh != list(islice(tasks.fresh_solutions(config, 4), 300))
    held_out = {p.text for p in tasks.test_prompts(config)}
    assert not held_out & {prompt for prompt, _ in fresh}
    for prompt, solution in fresh:
        assert maze.verify(prompt, solution, style=style, lenient=False) == 1.0


@pytest.mark.parametrize("style", ["prose", "compact"])
def test_alphabet_covers_prompts_and_solutions(style: str) -> None:
    chosen = MazeConfig(train_sizes=(7,), train_per_size=30, test_sizes=(9,), style=style)
    config = DataConfig(maze=chosen)
    alphabet = tasks.alphabet(config)
    assert list(alphabet) == sorted(set(alphabet))
    used = set()
    for prompt in tasks.train_prompts(config):
        used |= set(prompt.text + maze.render_solution(style, prompt.answer))
    assert used == set(alphabet)


def test_compact_alphabet() -> None:
    assert tasks.alphabet(DataConfig(maze=MazeConfig(style="compact"))) == "\n*.>DELRSU"


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("42", 1.0),
        (" 42\n", 1.0),
        ("so <answer> 42 </answer>.", 1.0),
        ("<answer>41</answer> no, <answer>42</answer>", 1.0),
        ("<answer>42</answer> no, <answer>41</answer>", 0.0),
        ("it is 42", 0.0),
        ("", 0.0),
    ],
)
def test_exact(response: str, reward: float) -> None:
    prompt = Prompt(id="0", text="?", answer="42 ", task="exact")
    assert tasks.verify(prompt, response, config=DataConfig()) == reward


def test_verifier_takes_style_and_leniency_from_the_configuration() -> None:
    prompt = Prompt(id="0", text="*****\n*S*E*\n*.*.*\n*...*\n*****", answer="", task="maze")
    for style, lenient, reward in (("compact", True, 1.0), ("compact", False, 0.0)):
        config = DataConfig(maze=MazeConfig(style=style, lenient=lenient))
        assert tasks.verify(prompt, "DD-RR-UU", config=config) == reward
    assert tasks.verify(prompt, "<answer>DDRRUU</answer>", config=DataConfig()) == 1.0


def test_prompts_from_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "a", "task": "exact"}) + "\n")
    want = [Prompt(id="0", text="p", answer="a", task="exact")]
    only_train = DataConfig(train=str(path))
    assert tasks.train_prompts(only_train) == want
    assert tasks.test_prompts(only_train) == [], "no evaluation without a test file"
    assert tasks.test_prompts(DataConfig(train=str(path), test=str(path))) == want
