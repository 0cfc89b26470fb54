"""Responses to learn from in a supervised warm start: the rows of a file, checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from passk_fast.errors import DataError
from passk_fast.tasks.files import read_rows

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each message of a chat"""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One row. Example: prompt "1 + 1 =", response " 2", place "sums.jsonl:1"."""

    prompt: str | Messages
    """A text as it is, or messages for the model's chat template."""
    response: str
    place: str
    """Where it stands, for error messages."""


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """All rows of a file or folder, with fields `prompt` and `response`; others are ignored.

    Raises:
        DataError: missing or malformed, naming `file:line` (JSONL) or `file: row`.
    """
    rows = [_demonstration(place, row) for place, row in read_rows(path)]
    if not rows:
        raise DataError(f"{path}: it holds no rows.")
    return rows


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    source, digest = Path(path), hashlib.sha256()
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    for file in files:
        with file.open("rb") as opened:
            one = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(source)} {one}\n".encode())
    return digest.hexdigest()


def _demonstration(place: str, row: object) -> Demonstration:
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be an object with prompt and response.")
    for name in ("prompt", "response"):
        if row.get(name) is None:
            raise DataError(f"{place}: field {name!r} is missing.")
    prompt = row["prompt"]
    return Demonstration(
        prompt=_messages(place, prompt)
        if isinstance(prompt, list)
        else _full(place, "prompt", prompt),
        response=_full(place, "response", row["response"]),
        place=place,
    )


def _messages(place: str, found: list[object]) -> Messages:
    messages = []
    for i, message in enumerate(found):
        name = f"prompt[{i}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{place}: field {name!r} must be an object with role and content.")
        messages.append(
            (
                _full(place, f"{name}.role", message["role"]),
                _full(place, f"{name}.content", message["content"]),
            )
        )
    if not messages:
        raise DataError(f"{place}: field 'prompt' is empty.")
    return tuple(messages)


def _full(place: str, name: str, value: object) -> str:
    """`value` as a text that is not empty and can be written in UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{place}: field {name!r} must be text, got {type(value).__name__}.")
    if not value:
        raise DataError(f"{place}: field {name!r} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: field {name!r} holds half of a surrogate pair.") from None
    return value
