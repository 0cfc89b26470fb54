"""Maths data sets in their published columns as prompts of the task `maths`.

AIME 2024 and 2025, MATH, MATH-500, OlymMATH, DAPO-Math-17k and GSM8K, from a JSONL, JSON, CSV or
Parquet file or, where there is network, from the Hugging Face Hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from passk_fast.data.types import Prompt
from passk_fast.errors import DataError
from passk_fast.tasks.answers import boxed
from passk_fast.tasks.files import read_rows

INSTRUCTION = "\n\nReason step by step, and put the final answer inside \\boxed{}."
Row = Mapping[str, object]
Read = Callable[[Row], tuple[str, str]]
"""(problem, answer) of a row; KeyError or ValueError where it is not of the layout."""
_NOT_KEPT = ("solution", "url")


@dataclass(frozen=True)
class Layout:
    """One way in which a published data set names its columns."""

    name: str
    columns: frozenset[str]
    """All of them must be there; the first layout in `LAYOUTS` that fits is taken."""
    read: Read


def _text(row: Row, column: str) -> str:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"field {column!r} must be text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with a gap is read as one of floats
    return str(value).strip()


def _columns(problem: str, answer: str) -> Read:
    return lambda row: (_text(row, problem), _text(row, answer))


def _math(row: Row) -> tuple[str, str]:
    answer = boxed(_text(row, "solution"))
    if answer is None:
        raise ValueError("field 'solution' holds no \\boxed{} answer")
    return _text(row, "problem"), answer


def _gsm8k(row: Row) -> tuple[str, str]:
    _, marker, answer = _text(row, "answer").rpartition("####")
    if not marker:
        raise ValueError("field 'answer' holds no '####' before the answer")
    return _text(row, "question"), answer.strip().replace(",", "")


def _dapo(row: Row) -> tuple[str, str]:
    messages, model = _structure(row["prompt"]), _structure(row["reward_model"])
    if not isinstance(model, Mapping) or "ground_truth" not in model:
        raise ValueError("field 'reward_model' holds no 'ground_truth'")
    contents = [
        message.get("content")
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, Mapping) and message.get("role") == "user"
    ]
    if not contents or not isinstance(contents[-1], str):
        raise ValueError("field 'prompt' holds no message of the user")
    return contents[-1].strip(), _text(model, "ground_truth")


def _structure(value: object) -> object:
    """A nested column, which CSV files and some exports hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value)
    except ValueError:
        raise ValueError("a nested column is no JSON") from None
    return parsed


LAYOUTS = (
    Layout("DAPO-Math-17k", frozenset({"prompt", "reward_model"}), _dapo),
    Layout("AIME 2024", frozenset({"Problem", "Answer"}), _columns("Problem", "Answer")),
    Layout(
        "AIME, MATH-500 or OlymMATH",
        frozenset({"problem", "answer"}),
        _columns("problem", "answer"),
    ),
    Layout("MATH", frozenset({"problem", "solution"}), _math),
    Layout("GSM8K or AIME 2025", frozenset({"question", "answer"}), lambda row: _question(row)),
)


def _question(row: Row) -> tuple[str, str]:
    """GSM8K's answers are solutions that end in `####`; AIME 2025's are numbers."""
    return (
        _gsm8k(row)
        if len(_text(row, "answer")) > 20 or "####" in str(row["answer"])
        else (
            _text(row, "question"),
            _text(row, "answer"),
        )
    )


def load_maths(source: str, *, split: str = "test", subset: str | None = None) -> list[Prompt]:
    """Prompts of a file, or of the Hub's data set `source` ("owner/name"), each problem once.

    `split` and `subset` (of OlymMATH: "en-hard", ...) belong to the Hub alone.

    Raises:
        DataError: unreadable, of no known layout, or a row without problem or answer.
    """
    rows = read_rows(f"{source}/{subset}" if subset else source, split)
    prompts: dict[str, Prompt] = {}
    used: set[str] = set()
    for number, (where, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where}: must be an object with the columns of a known data set.")
        prompt = _prompt(where, row, number, used)
        prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise DataError(f"{source}: it holds no problems.")
    return list(prompts.values())


def _prompt(where: str, row: Row, number: int, used: set[str]) -> Prompt:
    layout = next((layout for layout in LAYOUTS if layout.columns <= row.keys()), None)
    if layout is None:
        known = "; ".join(f"{e.name}: {', '.join(sorted(e.columns))}" for e in LAYOUTS)
        held = ", ".join(map(str, row))  # a CSV row with too many fields has one named None
        raise DataError(f"{where}: columns {held} are of no known layout ({known}).")
    try:
        problem, answer = layout.read(row)
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: {error} ({layout.name}).") from None
    if not problem or not answer:
        raise DataError(f"{where}: the problem or its answer is empty ({layout.name}).")
    names = [str(row[name]) for name in ("unique_id", "id", "ID") if row.get(name) is not None]
    identity = names[0] if names and names[0] not in used else str(number)
    if identity in used:
        identity = f"row-{number}"
    used.add(identity)
    return Prompt(
        id=identity,
        text=problem if layout.name.startswith("DAPO") else problem + INSTRUCTION,
        answer=answer,
        task="maths",
        columns=_kept(row, layout),
    )


def published_row(where: str, row: object) -> object:
    """A row of a published layout as one of a prompt file; any other row as it is.

    Rows that name their `task`, and those with `prompt` and `answer`, are not of a layout.

    Raises:
        DataError: a row of a layout without problem or answer.
    """
    if not isinstance(row, dict) or "task" in row or {"prompt", "answer"} <= row.keys():
        return row
    if not any(layout.columns <= row.keys() for layout in LAYOUTS):
        return row
    prompt = _prompt(where, row, 0, {"0"})
    names = {"id": prompt.id} if prompt.id != "row-0" else {}
    told = {"prompt": prompt.text, "answer": prompt.answer, "task": prompt.task}
    return {**prompt.columns, **names, **told}


def _kept(row: Row, layout: Layout) -> dict[str, object]:
    """Further columns that are plain values, such as the level and the subject."""
    return {
        name: value
        for name, value in row.items()
        if name not in layout.columns | set(_NOT_KEPT) and isinstance(value, str | int | float)
    }


def write_prompts(prompts: Iterable[Prompt], path: Path) -> None:
    """Write prompts as JSONL that `data.train` and `data.test` take."""
    with open(path, "w", encoding="utf-8") as file:
        for p in prompts:
            row = {**p.columns, "id": p.id, "prompt": p.text, "answer": p.answer, "task": p.task}
            file.write(json.dumps(row) + "\n")
