"""The task `maze` (arXiv 2508.10751, section 3.1): generator, prompts and verifier.

A text grid n x n of `*` wall, `.` free, `S` start, `E` end; the answer is a string of U D L R.
Mazes are trees carved by depth-first search, so exactly one simple path joins S and E.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passk_fast.config import MazeConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.seeding import seed_for
from passk_fast.tasks.answers import boxed, last_answer, tagged_answer
from passk_fast.tasks.order import EndlessPrompts

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
COMPACT_END = ">"
"""Ends a compact prompt; the response is the moves alone."""

HELD_OUT_OF_256 = 36
"""How many of 256 mazes are held out. It leaves 13 and 71 mazes of 5x5, 532 and 3,276 of 7x7."""
MAX_TRIES_IN_A_ROW = 5000
"""After this many mazes in a row that are not wanted a size is taken to have no new one left."""

_PROSE = """\
You are in a maze drawn as a text grid: `*` is a wall, `.` is free, `S` is the start and `E` is \
the end. A move is U (up), D (down), L (left) or R (right) by one cell; walls cannot be entered.

{grid}

Think, then give the moves from S to E inside tags, for example <answer>UURD</answer>.
"""


def carve(size: int, rng: random.Random) -> str:
    """A maze as text of `size` lines. `size` is odd, 5 to 21."""
    grid = [["*"] * size for _ in range(size)]
    grid[1][1] = "."
    stack = [(1, 1)]
    while stack:
        y, x = stack[-1]
        options = [
            (dy, dx)
            for dy, dx in MOVES.values()
            if 0 < y + 2 * dy < size - 1
            and 0 < x + 2 * dx < size - 1
            and grid[y + 2 * dy][x + 2 * dx] == "*"
        ]
        if not options:
            stack.pop()
            continue
        dy, dx = rng.choice(options)
        grid[y + dy][x + dx] = grid[y + 2 * dy][x + 2 * dx] = "."
        stack.append((y + 2 * dy, x + 2 * dx))
    free = [(y, x) for y in range(size) for x in range(size) if grid[y][x] == "."]
    start, end = rng.sample(free, 2)
    grid[start[0]][start[1]], grid[end[0]][end[1]] = "S", "E"
    return "\n".join("".join(row) for row in grid)


def is_held_out(grid: str) -> bool:
    """Whether a maze can only be a held-out one; all others can only be training mazes.

    Its own text decides, so no settings, sizes, counts or seeds can bring the two together.
    """
    return hashlib.sha256(b"maze split:" + grid.encode()).digest()[0] < HELD_OUT_OF_256


def _find(lines: list[str], symbol: str) -> tuple[int, int]:
    for y, line in enumerate(lines):
        if symbol in line:
            return y, line.index(symbol)
    raise ValueError(f"the maze has no {symbol!r}")


def solve(lines: list[str]) -> str:
    """Moves of the shortest path from S to E; ValueError where there is none."""
    start, end = _find(lines, "S"), _find(lines, "E")
    paths = {start: ""}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if here == end:
            return paths[here]
        for move, (dy, dx) in MOVES.items():
            there = (here[0] + dy, here[1] + dx)
            if _cell(lines, there) not in ("*", "") and there not in paths:
                paths[there] = paths[here] + move
                queue.append(there)
    raise ValueError("the maze has no path from S to E")


def _cell(lines: list[str], at: tuple[int, int]) -> str:
    y, x = at
    return lines[y][x] if 0 <= y < len(lines) and 0 <= x < len(lines[y]) else ""


def render_prompt(style: str, grid: str) -> str:
    """The prompt of a grid in a style of `MazeConfig.style`."""
    return grid + COMPACT_END if style == "compact" else _PROSE.format(grid=grid)


def render_solution(style: str, moves: str) -> str:
    """The response that a perfect solver gives."""
    return moves if style == "compact" else f"<answer>{moves}</answer>"


def grid_of(prompt: str) -> list[str]:
    """The maze inside a prompt of either style: its lines of maze symbols holding S and E."""
    lines = [line.rstrip(COMPACT_END) for line in prompt.split("\n")]
    return [line for line in lines if len(line) >= 5 and set(line) <= set("*.SE")]


def verify(prompt: str, response: str, *, style: str, lenient: bool) -> float:
    """1.0 if the response solves the prompt's maze, else 0.0.

    Every step must stay in the grid and off the walls, and the last must end on E. Strict: the
    last `<answer>` tag is required (prose style) and holds only LRUD in any case, spaces and
    commas. Lenient, as the paper's released code: the last `\\boxed{}` in the tag is read, or the
    tag, or without one the whole text; its letters LRUD in any case are the moves, all else is
    skipped. `prompt` may also be a bare grid.

    Raises:
        ValueError: the prompt holds no maze.
    """
    lines = grid_of(prompt)
    moves = _lenient_moves(response) if lenient else _strict_moves(response, style)
    if not moves:
        return 0.0
    y, x = _find(lines, "S")
    for move in moves:
        dy, dx = MOVES[move]
        y, x = y + dy, x + dx
        if _cell(lines, (y, x)) in ("*", ""):
            return 0.0
    return float((y, x) == _find(lines, "E"))


def _strict_moves(response: str, style: str) -> str:
    """The moves, or "" where the answer is malformed."""
    if style == "compact":
        answer = response
    else:
        tagged = last_answer(response)
        if tagged is None:
            return ""
        answer = tagged
    moves = re.sub(r"[ ,]", "", answer.strip()).upper()
    return moves if moves and set(moves) <= set(MOVES) else ""


def _lenient_moves(response: str) -> str:
    tagged = last_answer(response)
    text = response if tagged is None else boxed(tagged) or tagged
    return "".join(c.upper() for c in text if c in "LRUDlrud")


def distinct(
    size: int, count: int, rng: random.Random, seen: set[str], *, held_out: bool
) -> Iterator[tuple[str, str]]:
    """(grid, moves) of `count` mazes of one size and one split, none of them in `seen`, which they
    are added to.

    Raises:
        ConfigError: there seem to be too few distinct mazes of this size in this split.
    """
    for i in range(count):
        for _ in range(MAX_TRIES_IN_A_ROW):
            grid = carve(size, rng)
            if grid not in seen and is_held_out(grid) == held_out:
                break
        else:
            split, field = ("held-out", "test") if held_out else ("training", "train")
            raise ConfigError(
                f"data.maze: only {i} of {count} distinct {size}x{size} mazes of the {split} split "
                f"were found; lower data.maze.{field}_per_size, or take larger sizes."
            )
        seen.add(grid)
        yield grid, solve(grid.split("\n"))


def held_out_count(config: MazeConfig, size: int) -> int:
    """Held-out mazes of a size: the paper has 75 of 7x7 and 100 of the others."""
    return 75 if size == 7 and config.test_per_size == 100 else config.test_per_size


@dataclass(frozen=True)
class Maze:
    """The task as a configuration sets it: splits, solutions and verifier."""

    config: MazeConfig
    seed: int
    name: str = "maze"
    binary: ClassVar[bool] = True

    def verify(self, prompt: Prompt, response: str) -> float:
        """1.0 if the response solves the maze in the prompt's text, else 0.0."""
        return verify(prompt.text, response, style=self.config.style, lenient=self.config.lenient)

    def answer_of(self, response: str) -> str:
        """The content of the last `<answer>` tag, without one the response."""
        return tagged_answer(response)

    def part_of(self, prompt: Prompt) -> str:
        """The maze's size, such as "9x9"; by columns and lines where they differ."""
        lines = grid_of(prompt.text)
        return f"{max(map(len, lines), default=0)}x{len(lines)}"

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError unless the prompt holds one maze with one S and one E."""
        grid = "".join(grid_of(prompt.text))
        if grid.count("S") != 1 or grid.count("E") != 1:
            raise ValueError("field 'prompt' holds no maze with one S and one E")

    def _prompt(self, name: str, grid: str, moves: str) -> Prompt:
        text = render_prompt(self.config.style, grid)
        return Prompt(id=name, text=text, answer=moves, task=self.name)

    def test_prompts(self) -> list[Prompt]:
        """Held-out mazes, all test sizes in turn; they depend on `test_*` and the seed alone."""
        rng, seen = random.Random(seed_for(self.seed, "maze-test")), set[str]()
        by_size: dict[int, list[Prompt]] = {}
        i = 0
        for size in self.config.test_sizes:
            count = held_out_count(self.config, size)
            for grid, moves in distinct(size, count, rng, seen, held_out=True):
                prompt = self._prompt(f"maze-test-{size}-{i}", grid, moves)
                by_size.setdefault(size, []).append(prompt)
                i += 1
        longest = max(len(prompts) for prompts in by_size.values())
        return [p[i] for i in range(longest) for p in by_size.values() if i < len(p)]

    def train_prompts(self) -> Sequence[Prompt]:
        """Training mazes; with `fresh` they are made when they are asked for."""
        if self.config.fresh:
            sizes = self.config.train_sizes
            return EndlessPrompts(self._fresh, len(sizes) * self.config.train_per_size)
        rng, seen = random.Random(seed_for(self.seed, "maze-train")), set[str]()
        mazes = [
            (size, grid, moves)
            for size in self.config.train_sizes
            for grid, moves in distinct(size, self.config.train_per_size, rng, seen, held_out=False)
        ]
        return [
            self._prompt(f"maze-train-{size}-{i}", grid, moves)
            for i, (size, grid, moves) in enumerate(mazes)
        ]

    def _fresh(self, number: int) -> Prompt:
        """Training maze `number` (from 0) of an endless row; sizes take turns."""
        sizes = self.config.train_sizes
        size = sizes[number % len(sizes)]
        rng = random.Random(seed_for(self.seed, "maze-fresh", number))
        ((grid, moves),) = distinct(size, 1, rng, set(), held_out=False)
        return self._prompt(f"maze-fresh-{size}-{number}", grid, moves)

    def solutions(self, seed: int) -> Iterator[tuple[str, str]]:
        """Endless (prompt, solution) texts of fresh mazes, none of which can be held out."""
        rng = random.Random(seed_for(seed, "warm-start"))
        style = self.config.style
        while True:
            size = rng.choice(self.config.train_sizes)
            for grid, moves in distinct(size, 1, rng, set(), held_out=False):
                yield render_prompt(style, grid), render_solution(style, moves)

    def alphabet(self) -> str:
        """All characters that prompts and solutions of this style hold, sorted."""
        style = self.config.style
        text = render_prompt(style, "*.SE\n") + render_solution(style, "".join(MOVES))
        return "".join(sorted(set(text)))
