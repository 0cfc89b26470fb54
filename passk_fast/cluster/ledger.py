"""The run's ledger: `ledger.jsonl` in the run folder says what happened to a run, and when.

One JSON object a line, appended by whoever knows: rank 0 of starts and ends, any rank of its
faults, the launcher of restarts. Nothing is ever removed from it.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict, cast

LEDGER = "ledger.jsonl"
Event = Literal["start", "resume", "end", "fault", "restart"]


class Entry(TypedDict, total=False):
    """One line: event, time (UTC, ISO 8601), host and pid always, the others where known."""

    event: Event
    time: str
    host: str
    pid: int
    rank: int
    step: int
    """The last step whose record was written."""
    code: int
    message: str
    world_size: int
    versions: dict[str, str]


def note(folder: Path, event: Event, entry: Entry) -> None:
    """Append a line. A folder that cannot be written is not an error here: the run finds it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    about: Entry = {"event": event, "time": now, "host": socket.gethostname(), "pid": os.getpid()}
    line = json.dumps({**about, **entry}, ensure_ascii=False) + "\n"
    try:
        with (folder / LEDGER).open("ab", buffering=0) as file:
            file.write(line.encode(errors="replace"))  # one write: lines of ranks do not mix
    except OSError:
        return


def read_ledger(folder: Path) -> list[Entry]:
    """All lines in order; empty without a ledger. A line that was cut off is left out."""
    try:
        lines = (folder / LEDGER).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "event" in entry:
            found.append(cast(Entry, entry))
    return found
