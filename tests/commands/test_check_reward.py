"""`check-reward`: a good function passes, each kind of bad one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passk_fast.commands.check_reward import check_reward
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
    assert check_reward([f"{rewards}:good"]) is ExitCode.DONE
    out = capsys.readouterr().out
    assert "right answers rewarded      2 of 8" in out
    assert "EXECUTED the output         0" in out
    assert "raised an exception         0" in out


def test_a_careless_function(rewards: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_reward([f"{rewards}:careless"]) is ExitCode.BAD_DATA
    out = capsys.readouterr().out
    assert "EXECUTED the output         0" not in out
    assert "gave nan, not a number in [0, 1]" in out
    assert "SyntaxError" in out
    assert "'Yes' earned 1" in out
    assert "right answers rewarded      8 of 8" in out


def test_leaving_the_process_is_an_exception(
    rewards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_reward([f"{rewards}:leaves"]) is ExitCode.BAD_DATA
    out = capsys.readouterr().out
    assert "it raised KeyboardInterrupt" in out
    assert "it raised SystemExit" in out
    assert "took over 5 s, or left      2" in out


def test_rows_of_a_file(rewards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "1+1?", "answer": 2, "level": 0.5}) + "\n")
    assert check_reward([f"{rewards}:leveled", "--data", str(data)]) is ExitCode.DONE
    assert "right answers rewarded      1 of 4" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"'level' is missing.*give rows with --data"):
        check_reward([f"{rewards}:leveled"])


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_reward(["--help"]) is ExitCode.DONE
    assert "FILE:FUNCTION" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewards.py"], "must have the form FILE:FUNCTION"),
        (["nowhere.py:f"], "no such file"),
        (["no_such_module_here:f"], "cannot be imported"),
        (["math:nothing"], "has no function 'nothing'"),
        (["math:cos", "--dta", "x"], "unknown '--dta x'"),
    ],
)
def test_bad_command_lines(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_reward(arguments)


def test_bad_data(rewards: str, tmp_path: Path) -> None:
    for text, message in (("{", "not JSON"), ("[]", "must be an object"), ("", "holds no rows")):
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            check_reward([f"{rewards}:good", "--data", str(tmp_path / "rows.jsonl")])
