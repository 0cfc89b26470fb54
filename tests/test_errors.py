"""Errors carry the exit codes that the documentation promises."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from passk_fast import errors
from passk_fast.errors import ExitCode, PasskError

ROOT = Path(__file__).parents[1]
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PasskError) and kind is not PasskError
]


def test_the_table_in_the_documentation_is_the_enumeration() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, flags=re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_code_of_failure(kind: type[PasskError]) -> None:
    error = kind("what is wrong, and the remedy")
    assert error.exit_code not in (ExitCode.DONE, ExitCode.PREEMPTED)
    assert str(error) == "what is wrong, and the remedy"


def test_kinds_that_a_script_must_tell_apart_have_different_codes() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_codes_fit_a_process() -> None:
    assert all(0 <= code < 256 for code in ExitCode)
    assert not any(code >= 128 for code in ExitCode), "128 and above are a shell's word for signals"
