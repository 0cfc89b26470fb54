"""Mazes: solvable, distinct, and a verifier that rewards exactly the right responses."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passk_fast.config import MazeConfig
from passk_fast.errors import ConfigError
from passk_fast.tasks import maze

STYLES = ("prose", "compact")
GRID = "\n".join(["*******", "*S....*", "*.***.*", "*.*.*.*", "*.*.*.*", "*.*..E*", "*******"])
"""Solved by RRRRDDDD alone; E lies four right and four down of S."""


def solved(grid: str) -> tuple[str, str]:
    """A maze with its shortest solution."""
    return grid, maze.solve(grid.split("\n"))


mazes = st.builds(
    lambda size, seed: solved(maze.carve(size, random.Random(seed))),
    st.sampled_from(range(5, 22, 2)),
    st.integers(0, 2**31),
)


def _strict(response: str, style: str = "prose", grid: str = GRID) -> float:
    prompt = maze.render_prompt(style, grid)
    return maze.verify(prompt, response, style=style, lenient=False)


def _lenient(response: str, style: str = "prose") -> float:
    prompt = maze.render_prompt(style, GRID)
    return maze.verify(prompt, response, style=style, lenient=True)


@settings(deadline=None, max_examples=80)
@given(mazes)
def test_the_shape_of_a_maze(made: tuple[str, str]) -> None:
    grid, moves = made
    lines = grid.split("\n")
    size = len(lines)
    assert {len(line) for line in lines} == {size}
    assert set(grid) <= set("*.SE\n")
    assert grid.count("S") == grid.count("E") == 1
    border = lines[0] + lines[-1] + "".join(line[0] + line[-1] for line in lines)
    assert set(border) == {"*"}
    cells = (size // 2) ** 2
    assert size * size - grid.count("*") == 2 * cells - 1, "a spanning tree"
    assert 1 <= len(moves) <= 2 * cells - 2


@settings(deadline=None, max_examples=80)
@given(mazes, st.sampled_from(STYLES), st.booleans())
def test_the_stored_answer_is_rewarded(made: tuple[str, str], style: str, lenient: bool) -> None:
    grid, moves = made
    response = maze.render_solution(style, moves)
    prompt = maze.render_prompt(style, grid)
    assert maze.verify(prompt, response, style=style, lenient=lenient) == 1.0
    assert maze.verify(grid, response, style=style, lenient=lenient) == 1.0
    assert maze.grid_of(prompt) == grid.split("\n")


@settings(deadline=None, max_examples=80)
@given(mazes, st.sampled_from(STYLES), st.data())
def test_a_spoilt_answer_is_not_rewarded(
    made: tuple[str, str], style: str, data: st.DataObject
) -> None:
    grid, moves = made
    i = data.draw(st.integers(0, len(moves) - 1))
    cut = moves[:i]
    bent = moves[:i] + data.draw(st.sampled_from("UDLR".replace(moves[i], ""))) + moves[i + 1 :]
    for wrong in (cut, bent, moves + moves[-1]):
        # in a tree no other walk of at most this length ends on E, unless it is not a walk at all
        assert _strict(maze.render_solution(style, wrong), style, grid) == 0.0


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="<answer>/ LRUDlrud,\n", max_size=80), st.sampled_from(STYLES))
def test_any_text_gets_0_or_1(response: str, style: str) -> None:
    assert _strict(response, style) in (0.0, 1.0)
    assert _lenient(response, style) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<answer>RRRRDDDD</answer>", 1.0),
        ("<ANSWER>\nr, r r,R d D,d d\n</ANSWER> done", 1.0),
        ("<answer>U</answer> no: <answer>RRRRDDDD</answer>", 1.0),
        ("<answer>RRRRDDDD</answer> no: <answer>U</answer>", 0.0),
        ("I write <answer> now: <answer>RRRRDDDD</answer>", 1.0),
        ("<answer>RRRRDDDD</answer> and <answer>", 1.0),
        ("<answer>RRRRDDDDLRLR</answer>", 1.0),
        ("<answer>RRRRDDDDL</answer>", 0.0),
        ("RRRRDDDD", 0.0),
        ("<answer>RRRRDDDD", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer> , </answer>", 0.0),
        ("<answer>RRRR-DDDD</answer>", 0.0),
        ("<answer>RRRR\nDDDD</answer>", 0.0),
        ("<answer>right right right right down down down down</answer>", 0.0),
        ("<answer>DDDDRRRR</answer>", 0.0),
        ("<answer>URRRRDDDDD</answer>", 0.0),
    ],
)
def test_strict_prose(response: str, reward: float) -> None:
    assert _strict(response) == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("RRRRDDDD", 1.0),
        (" rrrr, dddd\n", 1.0),
        ("<answer>RRRRDDDD</answer>", 0.0),
        ("RRRRDDDDx", 0.0),
        (">RRRRDDDD", 0.0),
        ("", 0.0),
    ],
)
def test_strict_compact(response: str, reward: float) -> None:
    assert _strict(response, "compact") == reward


@pytest.mark.parametrize(
    ("response", "style", "reward"),
    [
        ("<answer>RRRRDDDD</answer>", "prose", 1.0),
        ("<answer>R-R.R;R DDDD!</answer>", "prose", 1.0),
        ("<answer>U</answer> <answer>RRRRDDDD</answer>", "prose", 1.0),
        ("<answer>so: \\boxed{U}, \\boxed{RRRRDDDD}</answer>", "prose", 1.0),
        ("<answer>\\text{moves} \\boxed{RRRRDDDDD}</answer>", "prose", 0.0),
        ("\\boxed{RRRRDDDD}", "prose", 0.0),
        ("RRRRDDDD", "prose", 1.0),
        ("rrrr dddd.", "prose", 1.0),
        ("My route: RRRRDDDD", "prose", 0.0),
        ("<answer>DDDDRRRR</answer>", "prose", 0.0),
        ("<answer>UUDDDDDDRRRR</answer>", "prose", 0.0),
        ("<answer>LRRRRRDDDD</answer>", "prose", 0.0),
        ("<answer>RRRR</answer>", "prose", 0.0),
        ("", "prose", 0.0),
        ("RRRR?DDDD", "compact", 1.0),
        ("DDDDRRRR", "compact", 0.0),
    ],
)
def test_lenient(response: str, style: str, reward: float) -> None:
    assert _lenient(response, style) == reward


def test_lenient_never_leaves_the_grid() -> None:
    """A way round outside of the grid would come back in on the other side of a wall."""
    wide = "\n".join(["*****", "S***E", ".....", "*****"])
    assert maze.verify(wide, "DRRRRU", style="compact", lenient=True) == 1.0
    assert maze.verify(wide, "UURRRRDD", style="compact", lenient=True) == 0.0
    assert maze.verify(wide, "RRRR", style="compact", lenient=True) == 0.0


def test_no_foreign_letter_becomes_a_move() -> None:
    """Upper-casing must not turn some character of another script into L, R, U or D."""
    foreign = "".join(map(chr, range(128, sys.maxunicode + 1)))
    assert not [c for c in foreign if set(c.upper()) <= set(maze.MOVES)]
    assert _strict("<answer>RRRRDDDD\ufb02</answer>") == 0.0
    assert _lenient(f"<answer>RRRR{foreign}DDDD</answer>") == 1.0


def test_a_long_hostile_response_is_read_quickly() -> None:
    assert _strict("<answer>" * 20_000) == 0.0
    assert _lenient("<answer>" * 20_000) == 0.0


def test_a_prompt_without_a_maze() -> None:
    with pytest.raises(ValueError, match="the maze has no 'S'"):
        maze.verify("hello", "<answer>U</answer>", style="prose", lenient=False)


def test_solve_finds_the_shortest_and_knows_when_there_is_none() -> None:
    assert maze.solve(GRID.split("\n")) == "RRRRDDDD"
    assert maze.solve(["S..", "...", "..E"]) in {"DDRR", "RRDD", "DRDR", "RDRD", "DRRD", "RDDR"}
    with pytest.raises(ValueError, match="no path"):
        maze.solve(["S*E"])


@pytest.mark.parametrize("held_out", [True, False])
def test_distinct_gives_each_grid_once(held_out: bool) -> None:
    seen: set[str] = set()
    rng = random.Random(0)
    first = list(maze.distinct(7, 200, rng, seen, held_out=held_out))
    second = list(maze.distinct(7, 200, rng, seen, held_out=held_out))
    assert len({grid for grid, _ in first + second}) == len(seen) == 400
    assert {maze.is_held_out(grid) for grid in seen} == {held_out}
    assert all(solved(grid) == (grid, moves) for grid, moves in first + second)


@pytest.mark.parametrize(
    ("size", "held_out", "total"), [(5, True, 13), (5, False, 71), (7, True, 532), (7, False, 3276)]
)
def test_small_sizes_run_out(size: int, held_out: bool, total: int) -> None:
    """84 and 3,808 in both splits: depth-first trees from the corner cell, 2 and 14, times the
    places of S and E."""
    few = total * 97 // 100
    rng = random.Random(0)
    assert len(list(maze.distinct(size, few, rng, set(), held_out=held_out))) == few
    split = "held-out" if held_out else "training"
    words = rf"only \d+ of {total + 1} distinct {size}x{size} mazes of the {split} split"
    with pytest.raises(ConfigError, match=words):
        list(maze.distinct(size, total + 1, rng, set(), held_out=held_out))


def test_about_a_seventh_of_the_mazes_of_any_size_is_held_out() -> None:
    """Within four standard errors, and whatever the place of S and E or the size."""
    rng = random.Random(0)
    for size in (9, 15, 21):
        share = sum(maze.is_held_out(maze.carve(size, rng)) for _ in range(1000)) / 1000
        chance = maze.HELD_OUT_OF_256 / 256
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 1000) ** 0.5


def test_held_out_counts_are_the_papers() -> None:
    assert maze.held_out_count(MazeConfig(), 7) == 75
    assert maze.held_out_count(MazeConfig(), 9) == 100
    assert maze.held_out_count(MazeConfig(test_per_size=20), 7) == 20
