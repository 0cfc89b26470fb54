"""The exit code of a run as a file: torchrun itself only tells 0 from 1."""

from __future__ import annotations

from pathlib import Path

from passk_fast.errors import ExitCode

_NAME = "exit_code"


def write_exit_code(output_dir: Path, code: ExitCode) -> None:
    """Leave the code in the run folder; a folder that cannot be written is not an error here."""
    try:
        (output_dir / _NAME).write_text(f"{int(code)}\n")
    except OSError:
        return


def read_exit_code(output_dir: Path) -> ExitCode | None:
    """The code that a run left, or None."""
    try:
        return ExitCode(int((output_dir / _NAME).read_text()))
    except (OSError, ValueError):
        return None


def clear_exit_code(output_dir: Path) -> None:
    """Forget the last run's code."""
    (output_dir / _NAME).unlink(missing_ok=True)
