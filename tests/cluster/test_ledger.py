"""The ledger: one whole line an event, whoever writes it, and what can be read of a damaged one."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from passk_fast.cluster.ledger import LEDGER, note, read_ledger


def test_a_line_says_who_and_when(tmp_path: Path) -> None:
    note(tmp_path, "fault", {"rank": 1, "code": 17, "step": 3, "message": 'a "b"\nü\ud800'})
    note(tmp_path, "end", {"rank": 0, "code": 0})
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 2
    fault, end = read_ledger(tmp_path)
    assert fault["message"] == 'a "b"\nü?'
    assert (fault["event"], fault["rank"], fault["code"], fault["step"]) == ("fault", 1, 17, 3)
    assert fault["pid"] == os.getpid()
    assert fault["time"] <= end["time"]
    assert fault["time"].endswith("+00:00")


def _many(folder: Path, rank: int) -> None:
    for step in range(50):
        note(folder, "fault", {"rank": rank, "step": step, "message": "x" * 3000})


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(partial(_many, tmp_path), range(4)))
    found = read_ledger(tmp_path)
    assert {(entry["rank"], entry["step"]) for entry in found} == {
        (rank, step) for rank in range(4) for step in range(50)
    }


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == []
    note(tmp_path / "gone", "end", {})
    note(tmp_path, "start", {"step": 0})
    with (tmp_path / LEDGER).open("a") as file:
        file.write('[1]\n\n"text"\n{"no": "event"}\n{"event": "en')
    assert [entry["event"] for entry in read_ledger(tmp_path)] == ["start"]
