"""Bad command lines of every command: one paragraph, and a code that says why."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from passk_fast.commands.main import COMMANDS, main
from passk_fast.errors import ExitCode

ROOT = Path(__file__).parents[2]
LONG = "x" * 100_000
NUMBERS = ["²", "٣", "-1", "0", "1.5", "", "nan", "9" * 30, "1e3", "0x10", "١٠"]
"""What int() or str.isdigit() takes, and what people type."""

COUNTS = [
    f"{command} {option}={number}"
    for command, option in (
        ("train CONFIG --output-dir OUT", "--nproc"),
        ("train CONFIG --output-dir OUT", "--resume"),
        ("train CONFIG --output-dir OUT", "--max-restarts"),
        ("eval CONFIG", "--nproc"),
        ("curves passk:4", "--num-rollouts"),
        ("preflight", "--nproc"),
    )
    for number in NUMBERS
    if (option, number) != ("--max-restarts", "0")
]
PORTS = [
    f"launch --nodes 1 --nproc 1 --rendezvous 127.0.0.1:{port} train CONFIG"
    for port in ("99999", "65536", "-1", "²", "", "http", "29500x", "9" * 30)
]
OTHERS = [
    "trian CONFIG",
    LONG,
    "train nowhere.toml",
    "train DIR",
    "train /dev/null --output-dir /dev/null/run",
    "train /dev/zero",
    "train PIPE",
    f"train {LONG}",
    f"train CONFIG --output-dir {LONG}",
    f"train CONFIG --seed {LONG}",
    f"train CONFIG --{LONG} 1",
    "train CONFIG CONFIG",
    "train CONFIG --seed",
    "train CONFIG --seed 1 2",
    "train CONFIG --no-such 3",
    "train CONFIG seed=3",
    "train CONFIG --output-dir OUT --resume 3 --fresh",
    "train CONFIG --output-dir CONFIG",
    "eval CONFIG --samples maze=²",
    "eval CONFIG --samples maze=",
    "eval CONFIG --samples =4",
    "eval CONFIG --model nowhere",
    "eval CONFIG --out /nowhere/at/all.json",
    "eval",
    "convert",
    "convert nowhere",
    "convert nowhere OUT",
    "convert DIR OUT",
    "convert DIR OUT --dtype float8",
    f"convert {LONG} OUT",
    "import-gguf nowhere.gguf OUT",
    "import-gguf CONFIG OUT",
    "data",
    "data no_such_set OUT",
    "data maze",
    "check-reward nowhere.py:score",
    "check-reward CONFIG:score",
    "check-reward nothing",
    "doctor",
    "doctor nowhere",
    "plan CONFIG",
    "plan CONFIG --gpus ²",
    "plan CONFIG --gpus 0",
    "plan CONFIG --gpus 8 --gpu a100000",
    "curves no_such_estimator",
    "curves passk:²",
    "bench CONFIG --nproc two",
    "launch --nodes 0 --nproc 1 --rendezvous 127.0.0.1:29500 train CONFIG",
    "launch --nodes 99999999999 --nproc 1 --rendezvous 127.0.0.1:29500 train CONFIG",
    "launch --nodes 1 --nproc 1 --rendezvous 127.0.0.1:29500 trian CONFIG",
    "launch --nodes 1 --nproc 1 --rendezvous 127.0.0.1:29500 train nowhere.toml",
]
ALL = [*COUNTS, *PORTS, *OTHERS]


@pytest.mark.parametrize("line", ALL, ids=[line[:60] for line in ALL])
def test_one_paragraph(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    stands_for = {
        "CONFIG": str(ROOT / "configs" / "maze_cpu.toml"),
        "OUT": str(tmp_path / "out"),
        "DIR": str(tmp_path / "folder"),
        "PIPE": str(tmp_path / "pipe"),
    }
    words = [stands_for.get(word, word) for word in shlex.split(line)]
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().err
    assert end.value.code in (ExitCode.BAD_CONFIG, ExitCode.BAD_DATA, ExitCode.DISK)
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert 20 < len(said) < 2000


def test_there_are_enough_of_every_command() -> None:
    assert len(ALL) > 100
    assert {line.split()[0] for line in ALL} >= set(COMMANDS)
