"""`check-reward`: a good function passes, each kind of bad one is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from passk_fast.commands import check_reward
from passk_fast.commands.check_reward import command
from passk_fast.commands.main import main
from passk_fast.errors import ConfigError, DataError, ExitCode

REWARDS = """
import os, time
def good(prompt, response, answer):
    return float(response.strip() == answer)
def careless(prompt, response, answer):
    if "exec" in response or "\\\\int" in response:
        return float(bool(eval(response)))
    if "nan" in response:
        return float("nan")
    return float(answer in response or "Yes" in response)
def leaves(prompt, response, answer):
    if "KeyboardInterrupt" in response:
        raise KeyboardInterrupt
    if "SystemExit" in response:
        raise SystemExit
    if response == "__import__('os')._exit(0)":
        os._exit(0)
    return 0.0
def leveled(prompt, response, answer, level):
    return level * (response == answer)
"""


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    name = f"rewards_{tmp_path.name.replace('-', '_')}.py"
    (tmp_path / name).write_text(REWARDS)
    return str(tmp_path / name)


def test_a_good_function(rewards: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check-reward", f"{rewards}:good"])
    assert caught.value.code == ExitCode.DONE
    out = capsys.readouterr().out
    assert "right answers rewarded      2 of 8" in out
    assert "EXECUTED the output         0" in out
    assert "raised an exception         0" in out


def test_a_careless_function(rewards: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check-reward", f"{rewards}:careless"])
    assert caught.value.code == ExitCode.BAD_DATA
    out = capsys.readouterr().out
    assert "EXECUTED the output         0" not in out
    assert "gave nan, not a number in [0, 1]" in out
    assert "SyntaxError" in out
    assert "'Yes' earned 1" in out
    assert "right answers rewarded      8 of 8" in out


def test_leaving_the_process_is_an_exception(
    rewards: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_reward, "TIMEOUT_S", 1.0)
    assert command([f"{rewards}:leaves"]) is ExitCode.BAD_DATA
    out = capsys.readouterr().out
    assert "KeyboardInterrupt (rewards_" in out
    assert "SystemExit (rewards_" in out
    assert "took over 1 s, or left      2" in out


def test_rows_of_a_file(rewards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "1+1?", "answer": 2, "level": 0.5}) + "\n")
    assert command([f"{rewards}:leveled", "--data", str(data)]) is ExitCode.DONE
    assert "right answers rewarded      1 of 4" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"'level' is missing.*give rows with --data"):
        command([f"{rewards}:leveled"])


@pytest.mark.parametrize("name", ["-h", "--help"])
def test_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([name]) is ExitCode.DONE
    assert "passk-fast check-reward FILE:FUNCTION [--data" in capsys.readouterr().out


def test_the_file_is_given_by_a_path_or_a_dotted_name(
    rewards: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(rewards).parent))
    assert command([f"{Path(rewards).stem}:good"]) is ExitCode.DONE
    out = capsys.readouterr().out
    assert out.startswith(f"{Path(rewards).stem}:good: ")
    judged = int(out.split(": ")[1].split()[0])
    assert judged > 1000, "two prompts, hundreds of outputs each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewards.py"], "must have the form FILE:FUNCTION"),
        (["nowhere.py:f"], "no such file"),
        (["no_such_module_here:f"], "cannot be imported"),
        (["math:nothing"], "has no 'nothing'"),
        (["math:cos"], r"takes .*its first parameters must be named prompt, response, answer"),
        (["math:cos", "--dta", "x"], "usage: passk-fast check-reward FILE:FUNCTION"),
        (["--data", "x.jsonl"], "usage: passk-fast check-reward FILE:FUNCTION"),
        ([], "usage: passk-fast check-reward FILE:FUNCTION"),
    ],
)
def test_bad_command_lines(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "cannot be imported: SyntaxError: invalid syntax"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import no_such_module_here", "cannot be imported: ModuleNotFoundError"),
        ("score = 1", "is no function"),
        ("def score(response, answer): return 1.0", r"takes \(response, answer\): its first"),
    ],
)
def test_files_without_a_reward_function(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / f"broken_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        command([f"{path}:score"])


def test_a_file_may_have_the_name_of_another_module(tmp_path: Path) -> None:
    before = list(sys.path)
    (tmp_path / "json.py").write_text("def score(prompt, response, answer): return 0.0")
    assert command([f"{tmp_path / 'json.py'}:score"]) is ExitCode.DONE
    assert sys.path == before, "and processes that start later find the other module"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"rows\.jsonl:1: not JSON"),
        (b"\n" + b"[" * 100_000, r"rows\.jsonl:2: not JSON"),
        (b"[]", r"rows\.jsonl:1: must be an object with prompt and answer"),
        (b'{"prompt": "1 + 1?"}', r"rows\.jsonl:1: must be an object with prompt and answer"),
        (b"", "holds no rows"),
        (b"\xff", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_bad_data(rewards: str, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        command([f"{rewards}:good", "--data", str(path)])
