"""Prompts and verifiers: mazes that are generated, and data sets from files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.seeding import seed_for
from passk_fast.tasks import maze
from passk_fast.tasks.dataset import TASKS, load_prompts
from passk_fast.tasks.order import PromptOrder

__all__ = [
    "TASKS",
    "PromptOrder",
    "alphabet",
    "answer_of",
    "fresh_solutions",
    "load_prompts",
    "test_prompts",
    "train_prompts",
    "verifier_for",
    "verify",
]


def answer_of(response: str) -> str:
    """The last `<answer>` tag's content, without one the response, stripped: to compare answers."""
    tagged = maze.last_answer(response)
    return (response if tagged is None else tagged).strip()


def _verify_exact(prompt: Prompt, response: str) -> float:
    """1.0 if the last `<answer>` tag (without one, the response) equals the answer, stripped."""
    return float(answer_of(response) == prompt.answer.strip())


def _verify_maze(prompt: Prompt, response: str, *, style: str, lenient: bool) -> float:
    return maze.verify(prompt.text, response, style=style, lenient=lenient)


def verifier_for(task: str, config: DataConfig) -> Callable[[Prompt, str], float]:
    """The verifier of a task: (prompt, response text) -> reward, 0 or 1. ConfigError if unknown."""
    if task == "maze":
        return partial(_verify_maze, style=config.maze.style, lenient=config.maze.lenient)
    if task == "exact":
        return _verify_exact
    raise ConfigError(f"task {task!r} is unknown; known: {', '.join(TASKS)}.")


def verify(prompt: Prompt, response: str, *, config: DataConfig) -> float:
    """The verdict of the prompt's own task; a mixed data set has several."""
    return verifier_for(prompt.task, config)(prompt, response)


def _held_out_mazes(config: DataConfig) -> list[tuple[int, str, str]]:
    """(size, grid, moves) of the test split; depends on `test_*` and the seed alone."""
    rng = random.Random(seed_for(config.seed, "maze-test"))
    seen: set[str] = set()
    return [
        (size, grid, moves)
        for size in config.maze.test_sizes
        for grid, moves in maze.distinct(size, maze.test_count(config.maze, size), rng, seen)
    ]


def _maze_prompt(config: DataConfig, name: str, grid: str, moves: str) -> Prompt:
    text = maze.render_prompt(config.maze.style, grid)
    return Prompt(id=name, text=text, answer=moves, task="maze")


def test_prompts(config: DataConfig) -> Sequence[Prompt]:
    """Held-out prompts: of the file `test`, else generated mazes of all test sizes in turn."""
    if config.test:
        return load_prompts(config.test)
    if config.train:
        return []
    by_size: dict[int, list[Prompt]] = {}
    for i, (size, grid, moves) in enumerate(_held_out_mazes(config)):
        prompt = _maze_prompt(config, f"maze-test-{size}-{i}", grid, moves)
        by_size.setdefault(size, []).append(prompt)
    longest = max(len(prompts) for prompts in by_size.values())
    return [p[i] for i in range(longest) for p in by_size.values() if i < len(p)]


test_prompts.__test__ = False  # type: ignore[attr-defined]  # a loader, not a test


def train_prompts(config: DataConfig) -> Sequence[Prompt]:
    """Training prompts: of the file `train`, else generated mazes that the test split has not."""
    if config.train:
        return load_prompts(config.train)
    seen = {grid for _, grid, _ in _held_out_mazes(config)}
    rng = random.Random(seed_for(config.seed, "maze-train"))
    mazes = [
        (size, grid, moves)
        for size in config.maze.train_sizes
        for grid, moves in maze.distinct(size, config.maze.train_per_size, rng, seen)
    ]
    return [
        _maze_prompt(config, f"maze-train-{size}-{i}", grid, moves)
        for i, (size, grid, moves) in enumerate(mazes)
    ]


def fresh_solutions(config: DataConfig, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, solution) texts of fresh mazes, none of them in the test split.

    Raises:
        ConfigError: the test split seems to hold every maze of a training size.
    """
    held_out = {grid for _, grid, _ in _held_out_mazes(config)}
    rng = random.Random(seed_for(seed, "warm-start"))
    style = config.maze.style
    while True:
        size = rng.choice(config.maze.train_sizes)
        for _ in range(maze.MAX_TRIES_IN_A_ROW):
            grid, moves = maze.carve(size, rng)
            if grid not in held_out:
                break
        else:
            raise ConfigError(
                f"data.maze: the test split seems to hold every {size}x{size} maze, so none is "
                "left to train on; lower data.maze.test_per_size, or take larger ones."
            )
        yield maze.render_prompt(style, grid), maze.render_solution(style, moves)


def alphabet(config: DataConfig) -> str:
    """All characters that generated prompts and solutions hold, sorted."""
    style = config.maze.style
    text = maze.render_prompt(style, "*.SE\n") + maze.render_solution(style, "".join(maze.MOVES))
    return "".join(sorted(set(text)))
