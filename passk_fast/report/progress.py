"""Live progress on the console: a rich table on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TypeGuard

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from passk_fast.report.records import Record

AVERAGED_STEPS = 20
"""The time left comes from the mean duration of this many last steps."""


def format_duration(seconds: float) -> str:
    """Example: 45 -> "45s", 150 -> "2m30s", 3720 -> "1h02m", 100000 -> "1d03h"."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def _rate(value: float) -> str:
    """Example: 12345.6 -> "12.3k"."""
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def is_known(value: object) -> TypeGuard[float]:
    """Whether a metric is a number: what is over nothing is NaN in a record, null in its file."""
    return isinstance(value, int | float) and not math.isnan(value)


def _share(value: object) -> str:
    return f"{value:.0%}" if is_known(value) else "-"


def _number(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_known(value) else "-"


class Progress:
    """A metric sink that shows where the run stands.

    Reads "reward", "pass@1", "pass@k", "entropy", "zero_advantage_share" and "response_tokens"; one
    that a record lacks is shown as "-". "tokens/s" are response tokens over the whole step's time.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        k: int,
        first_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`first_step` is the step already done (0, or the resumed one); `clock` in seconds."""
        self.total_steps = total_steps
        self.k = k
        self._console = console or Console()
        self._clock = clock
        self._last = clock()
        self._first_step = first_step
        self._durations: deque[float] = deque(maxlen=AVERAGED_STEPS)
        self._evaluation = "-"
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(Text("starting"), console=self._console, transient=False)
            self._live.start()

    def write(self, record: Record) -> None:
        """Show one step. The record of the first step may be an evaluation alone."""
        now = self._clock()
        duration, self._last = now - self._last, now
        if record["step"] > self._first_step:
            self._durations.append(duration)
        fields = self._fields(record, duration)
        if self._live is None:
            self._print_line(record["step"], fields, "eval" in record)
        else:
            self._live.update(self._table(record["step"], fields), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was; the last table stays."""
        if self._live is not None:
            self._live.stop()

    def time_left(self, step: int) -> float | None:
        """Seconds to the last step; None before the first step has ended."""
        if not self._durations:
            return None
        mean = sum(self._durations) / len(self._durations)
        return mean * max(0, self.total_steps - step)

    def _fields(self, record: Record, duration: float) -> dict[str, str]:
        zero_advantage, tokens = record.get("zero_advantage_share"), record.get("response_tokens")
        left = self.time_left(record["step"])
        if "eval" in record:
            self._evaluation = (
                f"pass@1 {_number(record['eval'].get('pass@1'))} "
                f"pass@{self.k} {_number(record['eval'].get('pass@k'))}"
            )
        return {
            "reward": _number(record.get("reward")),
            "pass@1": _number(record.get("pass@1")),
            f"pass@{self.k}": _number(record.get("pass@k")),
            "entropy": _number(record.get("entropy")),
            "zero-advantage": _share(zero_advantage),
            "tokens/s": _rate(tokens / duration) if tokens and duration > 0 else "-",
            "left": "-" if left is None else format_duration(left),
            "held-out": self._evaluation,
        }

    def _print_line(self, step: int, fields: dict[str, str], evaluated: bool) -> None:
        shown = {key: text for key, text in fields.items() if key != "held-out" or evaluated}
        parts = [f"step {step}/{self.total_steps}", *(f"{k} {v}" for k, v in shown.items())]
        self._console.print("  ".join(parts), soft_wrap=True, markup=False, highlight=False)

    def _table(self, step: int, fields: dict[str, str]) -> Group:
        table = Table(expand=False)
        table.add_column("step", justify="right")
        for name in fields:
            table.add_column(name, justify="right")
        table.add_row(f"{step}/{self.total_steps}", *fields.values())
        bar = ProgressBar(total=max(1, self.total_steps), completed=step, width=60)
        return Group(table, bar)
