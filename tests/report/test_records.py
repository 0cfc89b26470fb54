"""Strict JSON lines, and cutting a metrics file back to the resumed step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from passk_fast.errors import DataError
from passk_fast.report.records import cut_after, plain, read_records, to_line, without_time


def test_non_finite_numbers_are_null_at_any_depth() -> None:
    line = to_line(
        {"step": 1, "loss": math.nan, "time": {"total": math.inf, "x": [1.0, -math.inf]}}
    )
    assert line == '{"loss": null, "step": 1, "time": {"total": null, "x": [1.0, null]}}\n'


def test_keys_are_sorted_and_floats_round_trip() -> None:
    record = {"step": 3, "b": 0.1 + 0.2, "a": {"z": 1, "y": 2}}
    line = to_line(record)
    assert line.index('"a"') < line.index('"b"') < line.index('"step"')
    assert line.index('"y"') < line.index('"z"')
    assert json.loads(line) == record


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(math.nan), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(math.inf), None),
        (True, True),
        ("text", "text"),
        (None, None),
        ((1, 2.0), [1, 2.0]),
    ],
)
def test_plain(value: object, want: object) -> None:
    assert plain(value) == want
    assert type(plain(value)) is type(want)


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        plain({"step": object()})


def test_without_time() -> None:
    assert without_time({"step": 1, "loss": 2.0, "time": {"step": 3.0}}) == {"step": 1, "loss": 2.0}


def write_steps(path: Path, steps: range, tail: str = "") -> None:
    path.write_text("".join(to_line({"step": step}) for step in steps) + tail)


@pytest.mark.parametrize(("resumed", "kept"), [(3, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4]), (0, [0])])
def test_cut_after(tmp_path: Path, resumed: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(5))
    cut_after(path, resumed)
    assert [record["step"] for record in read_records(path)] == kept


def test_cut_without_resuming_empties_and_a_missing_file_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_after(path, None)
    write_steps(path, range(5))
    cut_after(path, None)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("tail", ['{"step": 5, "lo', '{"step": 5}', "\x00\x00\n", "[1]\n", "{}\n"])
def test_broken_tail_is_dropped(
    tmp_path: Path, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(5), tail)
    cut_after(path, 10)
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3, 4]
    assert "dropped a broken record" in caplog.text


def test_reading_names_the_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(2), "oops\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:3: not a JSON object: 'oops'"):
        read_records(path)
    with pytest.raises(DataError, match=r"absent\.jsonl:1: there is no such"):
        read_records(tmp_path / "absent.jsonl")
