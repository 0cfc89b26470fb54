"""Untested versions are refused with package, version and range, and one switch goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from passk_fast.errors import ConfigError
from passk_fast.versions import SWITCH, TESTED, check_versions, package_version, untested

ROOT = Path(__file__).parents[1]

INSIDE = [
    ("python", "3.11.0"),
    ("python", "3.12.9"),
    ("torch", "2.11.0"),
    ("torch", "2.13.0+cpu"),
    ("torch", "2.13.1a0+git1234"),
    ("triton", "3.6.0"),
    ("triton", "3.7.1"),
    ("megatron-core", "0.16.1"),
    ("megatron-core", "0.19.2"),
    ("vllm", "0.32.0"),
    ("vllm", "0.32.4.dev1+cu130"),
    ("vllm", "absent"),
]
OUTSIDE = [
    ("python", "3.10.14"),
    ("python", "3.13.0"),
    ("torch", "2.10.0"),
    ("torch", "2.14.0+cu130"),
    ("triton", "3.5.1"),
    ("triton", "3.8.0"),
    ("megatron-core", "0.16.0"),
    ("megatron-core", "0.20.0"),
    ("vllm", "0.31.2"),
    ("vllm", "0.33.0"),
]


@pytest.mark.parametrize(("name", "version"), INSIDE)
def test_tested_versions_pass(name: str, version: str) -> None:
    assert untested({name: version}) == []
    check_versions({name: version})


@pytest.mark.parametrize(("name", "version"), OUTSIDE)
def test_others_are_refused(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    wanted = re.escape(f"{name} {version} (tested: {TESTED[name].words})")
    with pytest.raises(ConfigError, match=f"{wanted}.*{SWITCH}=1"):
        check_versions({name: version})


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"torch 1\.0 .*; vllm 1\.0 "):
        check_versions({"torch": "1.0", "triton": "3.7.1", "vllm": "1.0"})


def test_the_switch_turns_the_error_into_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    check_versions({"torch": "2.14.0"})
    assert capsys.readouterr().err.startswith("warning: Versions that passk_fast was not tested")
    check_versions({"torch": "2.14.0"}, warn=False)
    monkeypatch.setenv("RANK", "1")
    check_versions({"torch": "2.14.0"})
    assert capsys.readouterr().err == ""


def test_zero_does_not_set_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    with pytest.raises(ConfigError):
        check_versions({"torch": "2.14.0"})


def test_this_environment_is_a_tested_one() -> None:
    check_versions()
    assert package_version("no-such-package") == "absent"
    assert package_version("python") == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("command", ["train", "eval", "bench"])
def test_commands_refuse_before_they_start(command: str, tmp_path: Path) -> None:
    """A torch of another version, as its metadata say, stands first on the path."""
    metadata = tmp_path / "torch-2.99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0\n")
    done = subprocess.run(
        [sys.executable, "-m", "passk_fast", command, "configs/maze_cpu.toml"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "error: Versions that passk_fast was not tested with: torch 2.99.0" in done.stderr
    assert "Traceback" not in done.stderr
