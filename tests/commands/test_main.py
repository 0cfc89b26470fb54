"""Finding commands, their own options, and the code that their ranks leave."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from passk_fast.commands.arguments import positive, take
from passk_fast.commands.main import COMMANDS, main
from passk_fast.commands.ranks import code_of_ranks, leave_exit_code
from passk_fast.errors import ConfigError, ExitCode, LostRankError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_called_and_is_in_the_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(importlib.import_module(COMMANDS[name]).command)
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert f"\n  passk-fast {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; known: train, eval"),
        (["eval"], "usage: passk-fast eval CONFIG"),
        (["bench"], "usage: passk-fast bench CONFIG"),
        (["check-reward"], "usage: passk-fast check-reward FILE:FUNCTION"),
        (["check-reward", "rewards.py"], "'rewards.py' must have the form FILE:FUNCTION"),
        (["check-reward", "nowhere.py:score"], "nowhere.py: no such file"),
        (["convert", "a"], "usage: passk-fast convert RUN_OR_CHECKPOINT OUT"),
        (["import-gguf", "a"], "usage: passk-fast import-gguf FILE OUT"),
        (["plan", "x.toml", "--gpus", "none"], "--gpus must be a positive number, got 'none'"),
        (["curves", "--num-rollouts", "x"], "--num-rollouts must be a whole number, got 'x'"),
        (["preflight", "--nproc", "0", "--device", "cpu"], "--nproc must be a positive number"),
    ],
)
def test_a_users_mistake_is_one_paragraph(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == ExitCode.BAD_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_command_line_loads_no_library_before_a_command_needs_it() -> None:
    code = (
        "import sys; import passk_fast.commands.main, passk_fast.commands.train;"
        "import passk_fast.commands.bench;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'vllm', 'megatron', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_are_taken_out_of_the_arguments() -> None:
    arguments = ["a.toml", "--out", "x", "--nproc=2", "--optim.lr", "1"]
    assert take(arguments, "--out") == "x"
    assert take(arguments, "--nproc") == "2"
    assert take(arguments, "--nproc") is None
    assert arguments == ["a.toml", "--optim.lr", "1"]
    with pytest.raises(ConfigError, match="--out needs a value"):
        take(["a.toml", "--out"], "--out")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_numbers_of_things_are_positive(text: str) -> None:
    assert positive("12", "--nproc") == 12
    with pytest.raises(ConfigError, match="--nproc must be a positive number"):
        positive(text, "--nproc")


@pytest.mark.parametrize(
    ("rank", "code", "found"),
    [
        (0, ExitCode.DONE, ExitCode.DONE),
        (0, ExitCode.PREEMPTED, ExitCode.PREEMPTED),
        (1, ExitCode.DIVERGED, ExitCode.DIVERGED),
    ],
)
def test_the_code_that_a_rank_leaves_is_the_commands(
    tmp_path: Path, rank: int, code: ExitCode, found: ExitCode
) -> None:
    leave_exit_code(tmp_path, rank, code)
    assert code_of_ranks(0 if code == ExitCode.DONE else 1, tmp_path, "lost") == found


def test_ranks_that_fail_without_a_code_are_lost(tmp_path: Path) -> None:
    leave_exit_code(tmp_path, 1, ExitCode.PREEMPTED)  # rank 0 speaks for all
    with pytest.raises(LostRankError, match="killed"):
        code_of_ranks(1, tmp_path, "killed")
    assert code_of_ranks(0, tmp_path, "killed") == ExitCode.DONE
