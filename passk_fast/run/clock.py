"""Seconds spent in the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Example: `with clock.span("train"): ...`, then `clock.take()` gives {"train": 1.7, ...}."""

    def __init__(self) -> None:
        self._spans: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere; below zero to take them from another phase."""
        self._spans[name] = self._spans.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase and in all ("total") since the last call, and start over."""
        now = time.perf_counter()
        spans = {**self._spans, "total": now - self._start}
        self._spans, self._start = {}, now
        return spans
