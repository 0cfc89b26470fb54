"""The published set-ups as prompts: both splits of mazes, puzzles, and maths from local files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from passk_fast.config import DataConfig, MazeConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.tasks.maths_data import INSTRUCTION, load_maths
from passk_fast.tasks.splits import generated_task

_MAZE = ("data.seed", "data.maze.train_", "data.maze.test_", "data.maze.style")
_PUZZLES = (
    "data.seed",
    "data.puzzles.generators",
    "data.puzzles.train_",
    "data.puzzles.test_",
    "data.puzzles.difficulty",
    "data.puzzles.options",
)
_SHORTEST_PROBLEM = 20
"""Characters; a shorter problem may stand inside another by chance."""


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """One published set-up that is generated."""

    about: str
    config: DataConfig
    options: tuple[str, ...]
    """Beginnings of the names of the fields that change what is made."""


GENERATED: Mapping[str, SetUp] = {
    "maze": SetUp(
        about="Pass@k Training: 10,000 mazes of 9, 11, 13, 15; 100 held out of 7 to 21 (75 of 7)",
        config=DataConfig(),
        options=_MAZE,
    ),
    "maxrl_maze": SetUp(
        about="MaxRL: 10,000 mazes of 17x17, 256 held out, in compact style",
        config=DataConfig(
            maze=MazeConfig(
                train_sizes=(17,),
                train_per_size=10_000,
                test_sizes=(17,),
                test_per_size=256,
                style="compact",
            )
        ),
        options=_MAZE,
    ),
    "enigmata": SetUp(
        about="Pass@k Training's seven categories of puzzles, by reasoning-gym's generators",
        config=DataConfig(generate="puzzles"),
        options=_PUZZLES,
    ),
}
FROM_FILES: Mapping[str, str] = {
    "maths": "Pass@k Training: maths, from files such as DAPO-Math-17k and AIME",
    "math": "PKPO: MATH, from its files",
}
"""Name -> about: set-ups that are read from local files."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training and held-out prompts; no problem is in both."""

    train: Sequence[Prompt]
    test: Sequence[Prompt]
    dropped: int = 0
    """Training problems that were left out because they are held out too."""


def generated_splits(config: DataConfig) -> Splits:
    """Both splits of a generated set-up.

    Raises:
        ConfigError: data.maze.fresh, which makes no fixed data set, or as the task's generator.
    """
    if config.maze.fresh:
        raise ConfigError("data.maze.fresh makes mazes while it trains: there is no file of them.")
    task = generated_task(config)
    return Splits(train=task.train_prompts(), test=task.test_prompts())


def maths_splits(train: Sequence[str], test: Sequence[str]) -> Splits:
    """Problems of local files in the published layouts (`maths_data.LAYOUTS`), each once.

    A training problem whose text is, or contains, a held-out one is left out. Ids begin with the
    file's name, since those of two files may be the same.

    Raises:
        DataError: a file is missing or of no known layout, or no training problem is left.
    """
    held_out = list(_problems(test, "test"))
    hidden = [_key(p) for p in held_out]
    found = list(_problems(train, "train"))
    kept = [p for p in found if not _is_among(_key(p), hidden)]
    if found and not kept:
        raise DataError("Every training problem is held out too: name other files with --train.")
    return Splits(train=kept, test=held_out, dropped=len(found) - len(kept))


def _problems(files: Sequence[str], split: str) -> Iterator[Prompt]:
    seen: set[str] = set()
    stems: set[str] = set()
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file (--{split}).")
        stem = Path(file).stem
        if stem in stems:
            raise DataError(f"{file}: --{split} has another file called {stem!r}; rename one.")
        stems.add(stem)
        for prompt in load_maths(file):
            if (key := _key(prompt)) not in seen:
                seen.add(key)
                yield replace(prompt, id=f"{stem}-{prompt.id}")


def _key(prompt: Prompt) -> str:
    return " ".join(prompt.text.removesuffix(INSTRUCTION).split()).casefold()


def _is_among(key: str, hidden: Sequence[str]) -> bool:
    """DAPO's prompts stand in a frame of instructions, so being contained counts too."""
    return any(h == key or (len(h) >= _SHORTEST_PROBLEM and h in key) for h in hidden)


def counts(prompts: Sequence[Prompt], part_of: Callable[[Prompt], str]) -> dict[str, int]:
    """Part -> number of prompts, in the order of first appearance; "" where there are no parts."""
    out: dict[str, int] = {}
    for prompt in prompts:
        part = part_of(prompt)
        out[part] = out.get(part, 0) + 1
    return out
