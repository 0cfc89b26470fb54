"""Training and held-out prompts: from files where the configuration names them, else generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.tasks.dataset import load_prompts
from passk_fast.tasks.maze import Maze
from passk_fast.tasks.protocol import GeneratedTask
from passk_fast.tasks.puzzles import Puzzles


def generated_task(config: DataConfig) -> GeneratedTask:
    """What makes prompts where no file is named."""
    if config.generate == "puzzles":
        return Puzzles(config.puzzles, config.seed)
    return Maze(config.maze, config.seed)


def test_prompts(config: DataConfig) -> Sequence[Prompt]:
    """Held-out prompts: of the file `test`, else generated; none with a file `train` alone."""
    if config.test:
        return load_prompts(config.test, config, "test")
    return [] if config.train else generated_task(config).test_prompts()


test_prompts.__test__ = False  # type: ignore[attr-defined]  # a loader, not a test


def train_prompts(config: DataConfig) -> Sequence[Prompt]:
    """Training prompts: of the file `train`, else generated ones that the test split lacks."""
    if config.train:
        return load_prompts(config.train, config)
    return generated_task(config).train_prompts()


def fresh_solutions(config: DataConfig, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, solution) texts of fresh problems, none of them in the test split.

    Raises:
        ConfigError: the test split seems to hold every problem that could be made.
    """
    return generated_task(config).solutions(seed)


def alphabet(config: DataConfig) -> str:
    """All characters that generated prompts and solutions hold, sorted."""
    return generated_task(config).alphabet()
