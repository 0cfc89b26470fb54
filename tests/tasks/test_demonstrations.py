"""Rows of warm_start.data: read with their places, or refused with them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from passk_fast.errors import DataError, ExitCode
from passk_fast.tasks.demonstrations import content_digest, load_demonstrations

GOOD = {"prompt": "1 + 1 =", "response": " 2", "source": "a book"}
CHAT = {"prompt": [{"role": "user", "content": "1 + 1?"}], "response": "2"}


def test_texts_and_messages_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + json.dumps(GOOD) + "\r\n\n" + json.dumps(CHAT))
    first, second = load_demonstrations(file)
    assert (first.prompt, first.response, first.place) == ("1 + 1 =", " 2", f"{file}:1")
    assert second.prompt == (("user", "1 + 1?"),)
    assert second.place == f"{file}:3"


def test_parquet_files_and_saved_folders_are_read(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([CHAT, CHAT])
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        rows = load_demonstrations(tmp_path / name)
        assert [row.prompt for row in rows] == [(("user", "1 + 1?"),)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": 1' + "0" * 5000 + "}", "not JSON"),
        ("[1]", "must be an object with prompt and response"),
        ('{"response": "a"}', "field 'prompt' is missing"),
        ('{"prompt": "a"}', "field 'response' is missing"),
        ('{"prompt": "a", "response": null}', "field 'response' is missing"),
        ('{"prompt": "a", "response": 2}', "field 'response' must be text, got int"),
        ('{"prompt": "a", "response": ""}', "field 'response' is empty"),
        ('{"prompt": "", "response": "a"}', "field 'prompt' is empty"),
        ('{"prompt": [], "response": "a"}', "field 'prompt' is empty"),
        ('{"prompt": ["a"], "response": "a"}', r"'prompt\[0\]' must be an object"),
        ('{"prompt": [{"role": "user"}], "response": "a"}', r"'prompt\[0\]' must be an object"),
        (
            '{"prompt": [{"role": "user", "content": 3}], "response": "a"}',
            r"'prompt\[0\]\.content' must be text, got int",
        ),
        ('{"prompt": "a", "response": "\\ud83d"}', "'response' holds half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load_demonstrations(file)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty.jsonl", tmp_path / "rows.txt"
    empty.write_text("\n")
    other.write_text("prompt,response")
    for file, message in (
        (empty, "holds no rows"),
        (other, "must be a .jsonl"),
        (tmp_path / "x.jsonl", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            load_demonstrations(file)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.jsonl", tmp_path / "saved"
    folder.mkdir()
    digests = set()
    for text in ("a", "b"):
        file.write_text(text)
        (folder / "part").write_text(text)
        digests |= {content_digest(file), content_digest(folder)}
    (folder / "part").rename(folder / "other")
    assert len(digests | {content_digest(folder)}) == 5
    file.write_text("a")
    assert content_digest(file) in digests
