"""Curves of estimators: what the CSV holds, where eta peaks, what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from passk_fast.advantage import eta, table
from passk_fast.errors import ConfigError, DiskError
from passk_fast.report.estimator_curves import FIGURE_9, Curve, write_curves


@pytest.mark.parametrize(
    ("name", "argmax", "peak"),
    [
        ("passk:1", 16, 32.0),
        ("passk:4", 8, 10.3622247),
        ("passk:8", 4, 5.181112348),
        ("passk:16", 2, None),
    ],
)
def test_where_eta_peaks(name: str, argmax: int, peak: float | None) -> None:
    curve = Curve.parse(name, 32)
    assert curve.argmax == [argmax]
    assert f"at c = {argmax} of 32" in curve.summary()
    if peak is not None:
        assert eta(curve.table).max() == pytest.approx(peak, rel=1e-8)


def test_files_hold_the_tables_exactly(tmp_path: Path) -> None:
    names = [*FIGURE_9, "passk_piecewise:8:tau=0.25"]
    curves, paths = write_curves(names, 32, tmp_path / "new" / "curves")
    assert [path.suffix for path in paths] == [".csv", ".png", ".svg"]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(names) * 33
    last = [row for row in rows if row["curve"] == names[-1]]
    want = table("passk_piecewise", 32, 8, tau=0.25)
    got = np.array([[float(r["advantage_wrong"]), float(r["advantage_correct"])] for r in last])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal([float(row["eta"]) for row in last], eta(want))
    assert curves[-1].options == {"tau": 0.25}
    before = [path.read_bytes() for path in paths]
    write_curves(names, 32, tmp_path / "again")
    assert [(tmp_path / "again").with_suffix(p.suffix).read_bytes() for p in paths] == before


def test_a_dead_estimator_says_so() -> None:
    assert Curve.parse("passk:8", 8).summary() == "passk:8: no gradient for any group of 8"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pask:4", "Did you mean 'passk'"),
        ("passk:33", "k must be between 1 and n = 32, got 33"),
        ("passk:four", "is not ESTIMATOR"),
        ("passk_piecewise:8:tau=high", "is not ESTIMATOR"),
        ("passk_piecewise:8:tau=1.5", "tau must be between 0 and 1"),
        ("passk:4:tau=0.5", "option 'tau' is not one of estimator 'passk'"),
        ("passk_full:4", "has no table"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Curve.parse(text, 32)


def test_bad_sizes_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--num-rollouts must be at least 2, got 1"):
        write_curves(["passk"], 1, tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        write_curves(["passk"], 8, tmp_path / "file" / "x")
