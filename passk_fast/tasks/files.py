"""Rows of data files, with the place of each: JSONL, JSON, CSV, Parquet, saved folders, the Hub."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from passk_fast.errors import DataError

Row = tuple[str, object]
"""(place, what stands there): `file:line`, or `file: row N` counted from 0."""

FORMATS = ".jsonl, .json, .csv (each also .gz) or .parquet file, or a folder saved by `datasets`"
_TEXT_SUFFIXES = (".jsonl", ".json", ".csv")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<subset>[\w.-]+))?(:(?P<split>[\w.-]+))?")


def read_rows(source: str | Path, split: str = "train") -> list[Row]:
    """All rows of a file, of a folder saved by `datasets`, or of a data set on the Hub.

    `source` names the last as OWNER/NAME, OWNER/NAME/SUBSET or either with :SPLIT; `split` is taken
    where it names none. Lines are counted from 1. A file may begin with a byte-order mark.

    Raises:
        DataError: no such source, of another format, or malformed; begins with the place.
    """
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path)
    if path.exists():
        return _file_rows(path)
    name = _hub_name(path)
    if name is None:
        raise DataError(f"{source}: no such file or folder, and no name on the Hub (OWNER/NAME).")
    return _hub_rows(str(source), name["name"], name["subset"], name["split"] or split)


def is_on_hub(source: str) -> bool:
    """Whether `read_rows` would look for the source on the Hub; it is not asked."""
    path = Path(source)
    return not path.exists() and _hub_name(path) is not None


def _hub_name(path: Path) -> re.Match[str] | None:
    """The parts of a name on the Hub; None for what looks like a path that is missing."""
    if path.suffix in (*_TEXT_SUFFIXES, ".parquet", ".gz") or _is_local(path):
        return None
    return _HUB_NAME.fullmatch(str(path))


def _is_local(path: Path) -> bool:
    """Whether the first part of a path that does not exist is a folder here: a slip, no name."""
    return path.is_absolute() or Path(path.parts[0]).is_dir()


def _file_rows(path: Path) -> list[Row]:
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if kind not in _TEXT_SUFFIXES:
        raise DataError(f"{path}: must be a {FORMATS}.")
    text = _read_text(path)
    if kind == ".csv":
        return list(_csv_rows(path, text))
    if kind == ".json" and text.lstrip()[:1] == "[":
        return [(f"{path}: row {i}", row) for i, row in enumerate(_json(f"{path}", text))]
    # Only \n ends a line: JSON text may hold other line separators, such as U+2028.
    lines = ((f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), start=1))
    return [(place, _json(place, line)) for place, line in lines if line.strip()]


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text: {error.reason}.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a gzip file: {error}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def _json(place: str, text: str) -> list[object]:
    """A value of any kind; typed as a list for the one caller that has looked."""
    try:
        value: list[object] = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = f" at line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(f"{place}: not JSON: {error.msg}{at}, column {error.colno}.") from None
    except RecursionError:
        raise DataError(f"{place}: not JSON that can be read: nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits, or NaN
        raise DataError(f"{place}: not JSON that can be read: {_first_clause(error)}.") from None
    return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is no number in JSON")


def _first_clause(error: Exception) -> str:
    return str(error).partition(";")[0].rstrip(".")


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        fields = reader.fieldnames or []
        if len(set(fields)) < len(fields):
            raise DataError(f"{path}:1: a column is named twice: {', '.join(fields)}.")
        for row in reader:
            place, start = f"{path}:{start + 1}", reader.line_num
            if None in row or None in row.values():
                raise DataError(f"{place}: a row must have {len(fields)} fields, as line 1 has.")
            yield place, dict(row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}.") from None


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable Parquet file: {first}") from None
    return [(f"{path}: row {i}", row) for i, row in enumerate(rows)]


def _folder_rows(path: Path) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:  # whatever `datasets` raises: its words say what is wrong
        raise DataError(f"{path}: not a folder saved by `datasets`: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        names = ", ".join(sorted(loaded))
        raise DataError(f"{path}: it holds several splits ({names}); name one, {path}/SPLIT.")
    return [(f"{path}: row {i}", row) for i, row in enumerate(loaded)]


def _hub_rows(source: str, name: str, subset: str | None, split: str) -> list[Row]:
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # no network, no such name, no such split: its words say which
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: no such file or folder, and the Hub's data set {name} cannot be loaded: "
            f"{first[0]}"
        ) from None
    return [(f"{source}: row {i}", row) for i, row in enumerate(table)]
