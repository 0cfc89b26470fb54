"""Prompts from files: JSONL, Parquet, or a folder saved by the `datasets` library."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.tasks.maths_data import published_row
from passk_fast.tasks.protocol import ChecksPrompts
from passk_fast.tasks.registry import find_task

Row = tuple[str, object]
"""(place in the file, what stands there)"""
_REQUIRED = ("prompt", "answer", "task")
_FIELDS = ("id", *_REQUIRED)


def load_prompts(path: str | Path, config: DataConfig | None = None) -> list[Prompt]:
    """Prompts of a file or folder with columns `prompt`, `answer`, `task` and optionally `id`.

    Rows of a published maths layout (`maths_data`) become prompts of the task `maths`. Further
    columns are kept in `Prompt.columns`, for verifiers that take them.

    Raises:
        DataError: missing or malformed, naming `file:line` (JSONL) or `file: row`; also where a
            `task` is neither built in nor the dotted path to one, or cannot judge a prompt.
    """
    source = Path(path)
    rows = read_rows(source)
    settings = DataConfig() if config is None else config
    rows = [(where, published_row(where, row)) for where, row in rows]
    prompts = [_prompt(where, row, i, settings) for i, (where, row) in enumerate(rows)]
    if not prompts:
        raise DataError(f"{source}: it holds no prompts.")
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.id in first:
            raise DataError(
                f"{rows[i][0]}: id {prompt.id!r} was used before, in {rows[first[prompt.id]][0]}."
            )
        first[prompt.id] = i
    return prompts


def read_rows(source: Path) -> list[Row]:
    """Every row of a JSONL or Parquet file or of a folder saved by `datasets`, with its place.

    Raises:
        DataError: there is no such file, it is of another kind, or it cannot be read.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if source.is_dir():
        return _folder_rows(source)
    if source.suffix == ".parquet":
        return _parquet_rows(source)
    if source.suffix in (".jsonl", ".json"):
        return _jsonl_rows(source)
    raise DataError(
        f"{source}: must be a .jsonl or .parquet file, or a folder saved by `datasets`."
    )


def _jsonl_rows(source: Path) -> list[Row]:
    """(place, row) of each non-empty line; parsed here, so that an error can name its line."""
    rows: list[Row] = []
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text: {error}.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{source}:{number}", json.loads(line)))
        except (ValueError, RecursionError) as error:  # endless digits, endless nesting
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{source}:{number}: not JSON: {reason}.") from None
    return rows


def _parquet_rows(source: Path) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # `datasets` always writes a copy; not for keeps
        try:
            table = datasets.Dataset.from_parquet(str(source), cache_dir=cache, keep_in_memory=True)
        except Exception as error:
            raise DataError(f"{source}: not a readable Parquet file: {error}") from None
    return [(f"{source}: row {i}", row) for i, row in enumerate(table)]


def _folder_rows(source: Path) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(source), keep_in_memory=True)
    except Exception as error:
        raise DataError(f"{source}: not a folder saved by `datasets`: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        names = ", ".join(sorted(loaded))
        raise DataError(f"{source}: it holds several splits ({names}); name one, {source}/SPLIT.")
    return [(f"{source}: row {i}", row) for i, row in enumerate(loaded)]


def _prompt(where: str, row: object, index: int, config: DataConfig) -> Prompt:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with {', '.join(_REQUIRED)}.")
    if config.verifier:
        row = {**row, "task": config.verifier}
    for name in _REQUIRED:
        if row.get(name) is None:
            raise DataError(f"{where}: field {name!r} is missing.")
        if not isinstance(row[name], str):
            kind = type(row[name]).__name__
            raise DataError(f"{where}: field {name!r} must be text, got {kind}.")
    if not row["prompt"]:
        raise DataError(f"{where}: field 'prompt' is empty.")
    identity = row.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        kind = type(identity).__name__
        raise DataError(f"{where}: field 'id' must be text or a whole number, got {kind}.")
    prompt = Prompt(
        id=str(index) if identity is None else str(identity),
        text=row["prompt"],
        answer=row["answer"],
        task=row["task"],
        columns={name: value for name, value in row.items() if name not in _FIELDS},
    )
    try:
        task = find_task(prompt.task, config)
        if isinstance(task, ChecksPrompts):
            task.check_prompt(prompt)
    except ConfigError as error:
        raise DataError(f"{where}: field 'task': {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}.") from None
    return prompt
