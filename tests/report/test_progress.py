"""The console: a plain line per step without a terminal, a live table on one; the time left."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from passk_fast.report.progress import AVERAGED_STEPS, Progress, format_duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(step: int, **more: Any) -> dict[str, Any]:
    base = {
        "reward": 0.25,
        "pass@1": 0.25,
        "pass@k": 0.5,
        "entropy": 0.8,
        "zero_advantage_share": 0.354,
    }
    return {"step": step, **base, "response_tokens": 24690, **more}


def run(terminal: bool, clock: Clock, **kwargs: Any) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    return Progress(100, k=8, console=console, clock=clock, **kwargs), out


def test_plain_line() -> None:
    clock = Clock()
    progress, out = run(False, clock)
    clock.now += 2.0
    progress.write(record(1))
    progress.close()
    assert out.getvalue() == (
        "step 1/100  reward 0.250  pass@1 0.250  pass@8 0.500  entropy 0.800  zero-advantage 35%  "
        "tokens/s 12.3k  left 3m18s\n"
    )


def test_one_line_a_step_however_long() -> None:
    clock = Clock()
    progress, out = run(False, clock)
    for step in range(3):
        progress.write(record(step, eval={"pass@1": 0.3, "pass@k": 0.6}))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("held-out pass@1 0.300 pass@8 0.600")


def test_evaluation_alone_and_nulls() -> None:
    progress, out = run(False, Clock())
    progress.write({"step": 0, "eval": {"pass@1": None, "pass@k": 0.5}})
    assert "reward -" in out.getvalue()
    assert "left -" in out.getvalue()
    assert "held-out pass@1 - pass@8 0.500" in out.getvalue()


def test_time_left_is_a_moving_average_from_the_resumed_step() -> None:
    clock = Clock()
    progress, _ = run(False, clock, first_step=20)
    assert progress.time_left(20) is None
    for step in range(21, 25):
        clock.now += 50.0
        progress.write(record(step))
    assert progress.time_left(24) == pytest.approx(50.0 * 76)
    for step in range(25, 25 + AVERAGED_STEPS):
        clock.now += 3.0
        progress.write(record(step))
    assert progress.time_left(44) == pytest.approx(3.0 * 56)
    assert progress.time_left(100) == 0.0


def test_live_table_on_a_terminal() -> None:
    clock = Clock()
    progress, out = run(True, clock)
    clock.now += 2.0
    progress.write(record(1))
    progress.write(record(2, eval={"pass@1": 0.3, "pass@k": 0.6}))
    progress.close()
    for text in ("2/100", "pass@8", "12.3k", "35%", "0.600"):
        assert text in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (150, "2m30s"), (3720, "1h02m"), (100000, "1d03h"), (-3, "0s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
