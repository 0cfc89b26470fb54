"""A run goes on with the content that it began with, wherever it lies."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from passk_fast.config import DataConfig, RunConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError, PasskError
from passk_fast.run import inputs
from passk_fast.run.inputs import (
    Inputs,
    file_digest,
    folder_digests,
    refuse_other_inputs,
    row_digests,
)

ROWS = [
    Prompt(id=str(i), text=f"{i} + {i}", answer=str(2 * i), task="exact", columns={"level": i})
    for i in range(5)
]
CONFIG = RunConfig(data=DataConfig(train="rows.jsonl"))


def numbered(rows: list[Prompt]) -> list[Prompt]:
    """As a file without ids is read."""
    return [replace(row, id=str(i)) for i, row in enumerate(rows)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder of several files."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        (folder / name).write_text(name)
    return folder


def of(rows: list[Prompt], folder: Path, held_out: list[Prompt] | None = None) -> Inputs:
    return Inputs(
        train=row_digests(rows),
        test=row_digests(held_out or []),
        model=folder_digests(folder, {})[0],
    )


def refusal(before: Inputs, now: Inputs, folder: Path) -> PasskError:
    with pytest.raises(PasskError) as caught:
        refuse_other_inputs(before, now, CONFIG, folder)
    return caught.value


def test_rows_in_another_order_are_told_from_other_rows(model: Path) -> None:
    before = of(ROWS, model)
    refuse_other_inputs(before, of(list(ROWS), model), CONFIG, model)
    reversed_rows = numbered(ROWS[::-1])
    error = refusal(before, of(reversed_rows, model), model)
    assert isinstance(error, DataError)
    assert str(error).startswith("rows.jsonl: data.train holds its 5 rows in another order than")
    error = refusal(before, of(ROWS[:4], model), model)
    assert "holds other rows than when this run began (5 then, 4 now)" in str(error)
    error = refusal(before, of(ROWS, model, held_out=ROWS[:1]), model)
    assert str(error).startswith("data.test: the generated data holds other rows")


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"text": "y"}, {"answer": "y"}, {"task": "maths"}, {"columns": {"level": 9}}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_row_counts(change: dict[str, object]) -> None:
    other = [*ROWS[:4], Prompt(**{**vars(ROWS[4]), **change})]
    assert row_digests(other)["in_order"] != row_digests(ROWS)["in_order"]
    assert row_digests(other)["in_any_order"] != row_digests(ROWS)["in_any_order"]


def test_replaced_files_of_the_model_are_named(model: Path) -> None:
    before = of(ROWS, model)
    (model / "README.md").write_text("says nothing of the model")
    refuse_other_inputs(before, of(ROWS, model), CONFIG, model)
    (model / "model.safetensors").write_text("model.safetensorZ")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    error = refusal(before, of(ROWS, model), model)
    assert isinstance(error, ConfigError)
    assert "began, in chat_template.jinja, model.safetensors. The policy" in str(error)


def test_a_moved_folder_has_the_same_content(model: Path, tmp_path: Path) -> None:
    before = of(ROWS, model)
    moved = shutil.copytree(model, tmp_path / "moved")
    refuse_other_inputs(before, of(ROWS, moved), CONFIG, moved)


def test_only_touched_files_are_read_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, seen = folder_digests(model, {})
    read: list[str] = []

    def counted(file: Path) -> str:
        read.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(inputs, "file_digest", counted)
    assert folder_digests(model, seen) == (digests, seen)
    assert read == []
    weights = model / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    weights.write_text("model.safetensorZ")  # as long as before
    os.utime(weights, ns=times)
    assert folder_digests(model, seen)[0] != digests
    assert read == ["model.safetensors"]


def test_the_digest_of_a_large_file_depends_on_every_piece(tmp_path: Path) -> None:
    file = tmp_path / "large"
    content = bytearray(os.urandom((16 << 20) + 5))
    file.write_bytes(content)
    first = file_digest(file)
    assert file_digest(file) == first
    for at in (0, 8 << 20, len(content) - 1):
        content[at] ^= 1
        file.write_bytes(content)
        assert file_digest(file) != first
        content[at] ^= 1
    file.write_bytes(content[8 << 20 : 16 << 20] + content[: 8 << 20] + content[16 << 20 :])
    assert file_digest(file) != first
