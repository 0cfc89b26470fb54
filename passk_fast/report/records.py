"""Metric records as text: strict JSON lines, cut back to the step that a run resumes from.

A record is one step's metrics: flat numbers, an optional "eval" and a "time" of its own, so that
two runs can be compared with their timings left out.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from passk_fast.errors import DataError, DiskError

Record = Mapping[str, Any]

logger = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """`value` as strict JSON types: NaN and infinities become None, array scalars become numbers.

    Raises:
        TypeError: something that is not a number, text, mapping, sequence or one-element array.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}.")


def to_line(record: Record) -> str:
    """One JSON object with sorted keys on one line, newline included."""
    return json.dumps(plain(record), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics file; DataError names the line that is not a JSON object."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}:1: there is no such metrics file.") from error
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            raise DataError(f"{path}:{number}: not a JSON object: {line[:60]!r}.")
        records.append(record)
    return records


def last_step(path: Path) -> int:
    """The last step that a metrics file records; 0 without one. Broken lines are passed over."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return max((record["step"] for record in map(_parse, file) if record), default=0)


def without_time(record: Record) -> dict[str, Any]:
    """The record with its timings left out, for comparing two runs."""
    return {key: value for key, value in record.items() if key != "time"}


def cut_after(path: Path, resumed_step: int | None) -> None:
    """Drop the records after `resumed_step` (all of them for None), and a half-written last line.

    Records stand in order of their steps, so the file is cut at the first one to go.
    """
    if not path.exists():
        return
    keep = 0
    if resumed_step is not None:
        with path.open("rb") as file:
            for line in file:
                record = _parse(line) if line.endswith(b"\n") else None
                if record is None:
                    logger.warning("%s: dropped a broken record and all after it", path)
                    break
                if record["step"] > resumed_step:
                    break
                keep += len(line)
    if keep < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(keep)


def _parse(line: str | bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into DiskError naming the path."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{error.filename or path}: cannot write: {error.strerror}.") from error
