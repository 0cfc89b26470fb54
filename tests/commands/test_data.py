"""`passk-fast data`: what is written reads back, splits are disjoint, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passk_fast import tasks
from passk_fast.commands.data import command
from passk_fast.config import DataConfig, MazeConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError, ExitCode
from passk_fast.tasks.published import FROM_FILES, GENERATED, maths_splits
from passk_fast.tasks.sandbox import unavailable_reason

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
FEW = ["--data.maze.train-per-size", "6", "--data.maze.test-per-size", "2"]
PUZZLES = ["--data.puzzles.generators", "gcd", "countdown", "--data.puzzles.train-per-generator"]


def written(folder: Path, name: str) -> tuple[list[Prompt], list[Prompt]]:
    """Both files, as a run reads them."""
    config = DataConfig(
        train=str(folder / f"{name}_train.jsonl"), test=str(folder / f"{name}_test.jsonl")
    )
    return list(tasks.train_prompts(config)), list(tasks.test_prompts(config))


@pytest.mark.parametrize("name", ["maze", "maxrl_maze"])
def test_mazes_are_those_that_a_run_generates(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([name, str(tmp_path / "new"), *FEW, "--data.seed", "3"]) == ExitCode.DONE
    train, test = written(tmp_path / "new", name)
    chosen = GENERATED[name].config.maze
    config = DataConfig(
        seed=3,
        maze=MazeConfig(
            train_sizes=chosen.train_sizes,
            test_sizes=chosen.test_sizes,
            style=chosen.style,
            train_per_size=6,
            test_per_size=2,
        ),
    )
    assert train == list(tasks.train_prompts(config))
    assert test == list(tasks.test_prompts(config))
    out = capsys.readouterr().out.splitlines()
    assert [line.split(", sha256")[0].split(": ")[1] for line in out] == [
        f"{len(train)} prompts ({', '.join(f'6 {n}x{n}' for n in chosen.train_sizes)})",
        f"{len(test)} prompts ({', '.join(f'2 {n}x{n}' for n in chosen.test_sizes)})",
    ]
    assert [p.name for p in (tmp_path / "new").iterdir() if p.name.startswith(".")] == []


def test_the_sets_are_the_papers() -> None:
    maze = GENERATED["maze"].config.maze
    assert (maze.train_sizes, maze.train_per_size) == ((9, 11, 13, 15), 10_000)
    assert (maze.test_sizes, maze.test_per_size) == (tuple(range(7, 22, 2)), 100)
    assert GENERATED["enigmata"].config.puzzles.generators == (), "all of them"
    names = {path.name.split("_")[0] for path in Path("configs/papers").glob("*.toml")}
    assert names <= {*GENERATED, *FROM_FILES, "maxrl", "pkpo"}


@pytest.mark.slow
@pytest.mark.skipif(unavailable_reason() is not None, reason="no namespaces here")
def test_puzzles_read_back_with_their_columns(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    command(["enigmata", str(tmp_path), *PUZZLES, "4", "--data.puzzles.test-per-generator", "2"])
    train, test = written(tmp_path, "enigmata")
    assert [len(train), len(test)] == [8, 4]
    assert {str(p.columns["generator"]) for p in test} == {"gcd", "countdown"}
    assert not {p.text for p in train} & {p.text for p in test}
    task = tasks.find_task("puzzles", DataConfig())
    stored = next(p for p in test if p.answer)
    assert task.verify(stored, f"<answer>{stored.answer}</answer>") == 1.0


def test_maths_come_from_local_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [EXAMPLES / name for name in ("dapo.jsonl", "gsm8k.jsonl", "math.jsonl")]
    held_out = [EXAMPLES / name for name in ("aime2024.csv", "aime2025.jsonl")]
    names = (",".join(map(str, part)) for part in (files, held_out))
    command(["maths", str(tmp_path), "--train", next(names), "--test", next(names)])
    train, test = written(tmp_path, "maths")
    assert {p.id.split("-")[0] for p in train} == {"dapo", "gsm8k", "math"}
    assert {p.id.split("-")[0] for p in test} == {"aime2024", "aime2025"}
    assert {p.task for p in train + test} == {"maths"}
    assert any(p.columns.get("level") == "Level 1" for p in train)
    assert "maths_train.jsonl: " in capsys.readouterr().out
    task = tasks.find_task("maths", DataConfig())
    whole = [p for p in train + test if p.answer.isdigit()]
    assert all(task.verify(p, f"\\boxed{{{p.answer}}}") == 1.0 for p in whole)


def rows(path: Path, *problems: str) -> str:
    lines = [json.dumps({"problem": problem, "answer": "1"}) + "\n" for problem in problems]
    path.write_text("".join(lines))
    return str(path)


def test_a_held_out_problem_is_not_trained_on(tmp_path: Path) -> None:
    """The same text, other blanks and case, a frame around it; a short one only as a whole."""
    long = "What is the number of ways to tile a board of 2 by 9?"
    train = rows(
        tmp_path / "a.jsonl",
        f"Solve step by step.\n\n{long}\n\nEnd with Answer: x",
        long.upper().replace(" ", "  "),
        "1+1?",
        "What is 1+1? Say it twice.",
        "Another problem of some length.",
    )
    splits = maths_splits([train], [rows(tmp_path / "b.jsonl", long, "1+1?", long)])
    assert [p.id for p in splits.test] == ["b-0", "b-1"]
    assert [p.id for p in splits.train] == ["a-3", "a-4"]
    assert splits.dropped == 3
    with pytest.raises(DataError, match="Every training problem is held out too"):
        maths_splits([rows(tmp_path / "c.jsonl", long)], [str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ([], ConfigError, "usage: passk-fast data SET FOLDER"),
        (["maze"], ConfigError, "usage: passk-fast data SET FOLDER"),
        (["sudoku", "x"], ConfigError, "no set 'sudoku'; known: maze, maxrl_maze, enigmata"),
        (["maze", "x", "--optim.lr", "1"], ConfigError, "--optim.lr has no effect on the set"),
        (["maze", "x", "--data.maze.lenient"], ConfigError, "--data.maze.lenient has no effect"),
        (["maze", "x", "--data.maze.fresh"], ConfigError, "--data.maze.fresh has no effect"),
        (["enigmata", "x", "--data.maze.test-sizes", "7"], ConfigError, "has no effect"),
        (["maze", "x", "--data.maze.test-sizes", "8"], ConfigError, "odd sizes from 5 to 21"),
        (["maze", "x", "--train", "a.jsonl"], ConfigError, "maze is generated"),
        (["maths", "x"], ConfigError, "name them with --train FILE"),
        (["maths", "x", "--train", "a", "--data.seed", "1"], ConfigError, "--data.seed has no"),
        (["maths", "x", "--train", "no.jsonl"], DataError, r"no\.jsonl: no such file \(--train\)"),
    ],
)
def test_what_is_refused(
    arguments: list[str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    placed = [str(tmp_path / "out") if word == "x" else word for word in arguments]
    with pytest.raises(error, match=words):
        command(placed)
    assert not (tmp_path / "out").exists()


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    command(["maze", str(tmp_path), *FEW])
    before = (tmp_path / "maze_train.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"maze_train\.jsonl exists"):
        command(["maze", str(tmp_path), *FEW])
    assert (tmp_path / "maze_train.jsonl").read_bytes() == before


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [rows(tmp_path / "a.jsonl", "One problem"), rows(tmp_path / "b" / "a.jsonl", "Two")]
    with pytest.raises(DataError, match="--train has another file called 'a'"):
        maths_splits(files, [])
