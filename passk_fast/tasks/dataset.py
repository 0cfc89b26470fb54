"""Prompts from the rows of data files: columns, kinds of values, and what is wrong with a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.tasks.files import read_rows
from passk_fast.tasks.maths_data import published_row
from passk_fast.tasks.protocol import ChecksPrompts
from passk_fast.tasks.registry import BUILT_IN, find_task

_FIELDS = ("id", "prompt", "answer", "task")
_Row = Mapping[str, object]


def load_prompts(
    path: str | Path, config: DataConfig | None = None, split: str = "train"
) -> list[Prompt]:
    """Prompts of a source of `files.read_rows` with columns `prompt`, `answer`, `task` and `id`.

    A prompt is text or a list of chat messages; an answer is text or a number. `config.columns`
    renames columns; `config.task` or `config.verifier` judges every row. Without renaming, rows of
    a published maths layout (`maths_data`) become prompts of the task `maths`. Further columns are
    kept in `Prompt.columns`, for verifiers that take them.

    Raises:
        DataError: missing or malformed, naming `file:line` or `file: row`; also where a `task` is
            neither built in nor the dotted path to one, or cannot judge a prompt.
    """
    settings = DataConfig() if config is None else config
    rows = read_rows(path, split)
    prompts = [_prompt(place, row, i, settings) for i, (place, row) in enumerate(rows)]
    if not prompts:
        raise DataError(f"{path}: it holds no prompts.")
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        earlier = first.setdefault(prompt.id, prompt)
        if earlier is not prompt:
            raise DataError(
                f"{prompt.place}: id {prompt.id!r} was used before, in {earlier.place}."
            )
    return prompts


def _prompt(place: str, row: object, index: int, config: DataConfig) -> Prompt:
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be an object with {', '.join(_FIELDS[1:])}.")
    if not all(isinstance(name, str) for name in row):
        raise DataError(f"{place}: names of columns must be text.")
    named = _named(place, row, config)
    text, messages = _text_of(place, named)
    task = named.get("task")
    if not isinstance(task, str) or not task:
        raise _missing(place, "task", named, "; data.task names one for all rows")
    prompt = Prompt(
        id=_identity(place, named.get("id"), index),
        text=text,
        answer=_answer(place, named, needed=task in BUILT_IN and task != "code"),
        task=task,
        columns={
            name: _plain(value)
            for name, value in named.items()
            if name not in _FIELDS and not isinstance(value, bytes)
        },
        messages=messages,
        place=place,
    )
    _check_text(place, prompt)
    _check_task(place, prompt, config)
    return prompt


def _named(place: str, row: _Row, config: DataConfig) -> dict[str, object]:
    """The row with its columns under our names, and its task."""
    columns = config.columns
    names = {f: getattr(columns, f) for f in _FIELDS if getattr(columns, f)}
    for field, column in names.items():
        if column not in row:
            raise DataError(
                f"{place}: no column {column!r} (data.columns.{field}); there are "
                f"{', '.join(map(repr, row))}."
            )
    if names:
        taken = {column: row[column] for column in names.values()}
        rest = {name: value for name, value in row.items() if name not in taken}
        named = rest | {field: taken[column] for field, column in names.items()}
    else:
        found = published_row(place, dict(row))
        assert isinstance(found, dict)
        named = found
    task = config.verifier or config.task
    return {**named, "task": task} if task else named


def _missing(place: str, name: str, row: _Row, more: str = "") -> DataError:
    value = row.get(name)
    if value is None:
        held = ", ".join(map(repr, row)) or "none"
        return DataError(f"{place}: field {name!r} is missing{more}. Columns: {held}.")
    if value in ("", []):
        return DataError(f"{place}: field {name!r} is empty.")
    return DataError(f"{place}: field {name!r} must be text, got {type(value).__name__}.")


def _text_of(place: str, row: _Row) -> tuple[str, tuple[Mapping[str, object], ...]]:
    """(text, chat messages): of a prompt that is text, no messages; else the last one's text."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt:
        return prompt, ()
    if not isinstance(prompt, list) or not prompt:
        raise _missing(place, "prompt", row, "; data.columns.prompt names another column")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{place}: field 'prompt': message {i} has no role that is text.")
        if not isinstance(message.get("content"), str):
            raise DataError(f"{place}: field 'prompt': message {i} has no content that is text.")
    if prompt[-1]["role"] == "assistant":
        raise DataError(f"{place}: field 'prompt' ends with a message of the assistant.")
    if not prompt[-1]["content"]:
        raise DataError(f"{place}: field 'prompt': its last message is empty.")
    return prompt[-1]["content"], tuple(
        {name: value for name, value in message.items() if value is not None} for message in prompt
    )


def _answer(place: str, row: _Row, *, needed: bool) -> str:
    """As text; a task of this package needs one that is not empty."""
    answer = row.get("answer")
    if isinstance(answer, bool | int | float):
        if isinstance(answer, float) and not math.isfinite(answer):
            raise DataError(f"{place}: field 'answer' must be a finite number, got {answer}.")
        # A column of whole numbers with a gap is read as one of floats.
        whole = isinstance(answer, float) and answer.is_integer()
        return str(int(answer) if whole else answer)
    if answer is None and not needed:
        return ""
    if not isinstance(answer, str) or (needed and not answer):
        raise _missing(place, "answer", row, "; data.columns.answer names another column")
    return answer


def _identity(place: str, identity: object, index: int) -> str:
    if identity is None:
        return str(index)
    if isinstance(identity, float) and identity.is_integer():
        identity = int(identity)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        kind = type(identity).__name__
        raise DataError(f"{place}: field 'id' must be text or a whole number, got {kind}.")
    return str(identity)


def _plain(value: object) -> object:
    """The value as JSON has it: dates, decimals and the like become text."""
    if value is None or isinstance(value, str | int | float):
        return value
    return json.loads(json.dumps(value, default=str))


def _check_text(place: str, prompt: Prompt) -> None:
    """Refuse lone surrogates, halves of a character that no tokenizer and no file takes."""
    fields = {
        "prompt": (prompt.text, *(str(m) for m in prompt.messages)),
        "answer": (prompt.answer,),
        "id": (prompt.id,),
        "task": (prompt.task,),
        **{name: (name, value) for name, value in prompt.columns.items()},
    }
    for name, values in fields.items():
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = ascii(name)
            raise DataError(
                f"{place}: field {shown} holds half of a surrogate pair "
                f"({error.object[error.start]!a}), which is no character."
            ) from None


def _check_task(place: str, prompt: Prompt, config: DataConfig) -> None:
    try:
        task = find_task(prompt.task, config)
        if isinstance(task, ChecksPrompts):
            task.check_prompt(prompt)
    except ConfigError as error:
        raise DataError(f"{place}: field 'task': {error}") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}.") from None
