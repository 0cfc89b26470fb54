"""Restarts without a person: whether what ended the ranks is worth another start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.cluster.ledger import Entry, note, read_ledger
from passk_fast.commands.arguments import whole
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.report.records import last_step
from passk_fast.report.sinks import METRICS_FILE

MAX_RESTARTS = 3
"""Restarts in a row, without a new checkpoint between them."""


def max_restarts(text: str | None) -> int:
    """The value of --max-restarts; ConfigError unless it is a whole number of 0 or more."""
    if text is None:
        return MAX_RESTARTS
    number = whole(text)
    if number is None:
        raise ConfigError(
            f"command line: --max-restarts must be a whole number of 0 or more, got {text!r}."
        )
    return number


def restarted(
    start: Callable[[int, list[int]], int],
    folder: Path,
    limit: int,
    say: Callable[[str], None],
) -> int:
    """Start the ranks until they end for good; returns the last exit code.

    A lost rank, or an error that nobody foresaw, is worth another start from the newest good
    checkpoint: `limit` times in a row, and as often as new checkpoints are written in between. What
    is not: an exit code that says why, a signal to this process, and the same unforeseen error at
    the same step twice.

    Args:
        start: Given how many starts there were before, runs the ranks to their end and returns
            their exit code. It adds the signals that this process handed on to its second argument.
        folder: The run folder, with its ledger and checkpoints.
        limit: 0 or more.
        say: Shows a line to the user.
    """
    in_a_row, starts, reached = 0, 0, _newest(folder)
    signals: list[int] = []
    known: list[Entry] = []
    while True:
        before = len(read_ledger(folder))
        code = start(starts, signals)
        starts += 1
        if signals or code not in (ExitCode.LOST_RANK, ExitCode.CRASHED):
            return code
        faults = [e for e in read_ledger(folder)[before:] if e["event"] == "fault"]
        crashes = [e for e in faults if e.get("code") == ExitCode.CRASHED]
        if any(_same(old, new) for old in known for new in crashes):
            say("The same error at the same step twice: it is not tried again.")
            return ExitCode.CRASHED
        known += crashes
        if (newest := _newest(folder)) != reached:  # a fresh start may have set later ones aside
            in_a_row, reached = 0, newest
        if in_a_row >= limit:
            return code
        in_a_row += 1
        after = f" after step {step}" if (step := last_step(folder / METRICS_FILE)) else ""
        what = "An error that nobody foresaw" if crashes else "A rank was lost"
        said = f"{what}{after}. Restart {in_a_row} of {limit} from the newest good checkpoint."
        note(folder, "restart", {"message": said, "code": int(code)})
        say(said)


def has_begun(folder: Path, before: int) -> bool:
    """Whether a start has got to its first step since the ledger had `before` lines: --fresh and
    --resume are done then, and not to be done again."""
    return any(e["event"] in ("start", "resume") for e in read_ledger(folder)[before:])


def _same(a: Entry, b: Entry) -> bool:
    """One message at one step; a rank may read rank 0's records before or behind that step's."""
    close = abs(a.get("step", -1) - b.get("step", -1)) <= 1
    return close and a.get("message") == b.get("message")


def _newest(folder: Path) -> int:
    """The newest checkpoint's step; -1 without one."""
    return max(CheckpointStore(folder / "checkpoints", keep=1).steps(), default=-1)
