"""The exit code of a run as a file in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from passk_fast.cluster.exit_code_file import clear_exit_code, read_exit_code, write_exit_code
from passk_fast.errors import ExitCode


@pytest.mark.parametrize("code", ExitCode)
def test_a_code_is_read_back(tmp_path: Path, code: ExitCode) -> None:
    write_exit_code(tmp_path, code)
    assert read_exit_code(tmp_path) is code


def test_the_last_code_counts(tmp_path: Path) -> None:
    write_exit_code(tmp_path, ExitCode.LOST_RANK)
    write_exit_code(tmp_path, ExitCode.DONE)
    assert read_exit_code(tmp_path) is ExitCode.DONE


def test_a_new_run_forgets_the_last_ones_code(tmp_path: Path) -> None:
    write_exit_code(tmp_path, ExitCode.DIVERGED)
    clear_exit_code(tmp_path)
    assert read_exit_code(tmp_path) is None
    clear_exit_code(tmp_path)


@pytest.mark.parametrize("text", ["", "seventeen", "999"])
def test_what_is_no_code_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "exit_code").write_text(text)
    assert read_exit_code(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The code that the process returns must not be lost over it."""
    nowhere = tmp_path / "missing" / "folder"
    write_exit_code(nowhere, ExitCode.DISK)
    assert read_exit_code(nowhere) is None
