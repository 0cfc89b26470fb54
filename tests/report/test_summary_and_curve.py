"""The closing summary, and the learning curve as PNG and SVG."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from passk_fast.errors import DataError
from passk_fast.report.curve import plot_learning_curve
from passk_fast.report.records import to_line
from passk_fast.report.summary import format_summary, print_summary


def evaluation(one: float, many: float, half: float = 0.02) -> dict[str, Any]:
    out: dict[str, Any] = {"k": 8, "prompts": 64, "rollouts": 16}
    for name, value in (("pass@1", one), ("pass@k", many)):
        out |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return out


def test_summary_says_what_improved_and_where_to_look() -> None:
    text = format_summary(
        evaluation(0.1, 0.5), evaluation(0.31, 0.51), {"metrics": Path("run/metrics.jsonl")}
    )
    assert text.splitlines() == [
        "Held-out result (64 prompts x 16 responses, [interval])",
        "  pass@1   0.100 [0.080, 0.120]  ->  0.310 [0.290, 0.330]   "
        "+0.210, better: the intervals do not overlap",
        "  pass@8   0.500 [0.480, 0.520]  ->  0.510 [0.490, 0.530]   "
        "+0.010, within noise: the intervals overlap",
        "Where to look",
        "  metrics  run/metrics.jsonl",
    ]


def test_summary_says_what_got_worse() -> None:
    assert "-0.200, worse" in format_summary(evaluation(0.3, 0.5), evaluation(0.1, 0.5), {})


def test_summary_without_evaluations() -> None:
    assert "no evaluation was made" in format_summary(None, None, {})
    text = format_summary(None, {"pass@1": 0.5, "pass@k": None, "k": 4}, {})
    assert "pass@1   not measured  ->  0.500" in text
    assert "pass@4   not measured  ->  not measured" in text
    assert "+0.100" in format_summary({"pass@1": 0.4}, {"pass@1": 0.5}, {})


def test_summary_is_printed_as_it_is() -> None:
    out = io.StringIO()
    paths = {"curve": Path("run/" + "x" * 100)}
    after = evaluation(0.1, 0.5)
    print_summary(after, after, paths, Console(file=out, width=40))
    assert out.getvalue() == format_summary(after, after, paths) + "\n"


def write(path: Path, evaluations: dict[int, dict[str, Any]]) -> Path:
    records = [
        {"step": step} | ({"eval": evaluations[step]} if step in evaluations else {})
        for step in range(max(evaluations, default=3) + 1)
    ]
    path.write_text("".join(map(to_line, records)))
    return path


def test_curve_draws_both_series_from_the_warm_start(tmp_path: Path) -> None:
    metrics = write(
        tmp_path / "metrics.jsonl",
        {0: evaluation(0.1, 0.4), 10: evaluation(0.2, 0.5), 20: evaluation(math.nan, 0.6)},
    )
    png, svg = plot_learning_curve(metrics, tmp_path / "plots" / "curve.png")
    assert (png, svg) == (tmp_path / "plots/curve.png", tmp_path / "plots/curve.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for label in ("pass@1", "pass@8", "warm start", "training step", "64 held-out prompts"):
        assert label in text


def test_curve_is_the_same_bytes_again(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.jsonl", {5: evaluation(0.1, 0.4)})
    pictures = [plot_learning_curve(metrics, tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*pictures, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert "warm start" not in pictures[0][1].read_text()


def test_curve_without_evaluations_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record holds an evaluation"):
        plot_learning_curve(write(tmp_path / "metrics.jsonl", {}), tmp_path / "curve")
    with pytest.raises(DataError, match="no such metrics file"):
        plot_learning_curve(tmp_path / "absent.jsonl", tmp_path / "curve")
