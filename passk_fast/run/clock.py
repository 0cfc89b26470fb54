"""Seconds spent in the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Span:
    """The phase that is being measured; parts of it may be booked under names of their own."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    def split(self, **parts: float) -> None:
        """Seconds of this span that belong to other phases; ValueError for a negative number."""
        for name, seconds in parts.items():
            if seconds < 0:
                raise ValueError(f"phase {name!r} cannot have taken {seconds} s.")
            self.parts[name] = self.parts.get(name, 0.0) + seconds


class Clock:
    """Phases that do not overlap, so that their seconds add up to the time measured.

    Example: `with clock.span("train"): ...`, then `clock.take()` gives {"train": 1.7, ...}.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now` gives seconds."""
        self._now = now
        self._phases: dict[str, float] = {}
        self._concurrent: dict[str, float] = {}
        self._in_span = False
        self._start = now()

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Add the time of the block to phase `name`, less the parts that are split off.

        Parts were measured elsewhere, perhaps by another machine's clock: they are cut where
        together they would exceed the block. RuntimeError inside of another span.
        """
        if self._in_span:
            raise RuntimeError(f"phase {name!r} begins inside of another phase.")
        self._in_span = True
        span, start = Span(), self._now()
        try:
            yield span
        finally:
            self._in_span = False
            left = self._now() - start
            for part, seconds in span.parts.items():
                self._add(part, min(seconds, left))
                left -= min(seconds, left)
            self._add(name, left)

    def concurrent(self, name: str, seconds: float) -> None:
        """Seconds of work in another thread or process during the phases of this one."""
        self._concurrent[name] = self._concurrent.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase and in all ("total") since the last call, and start over.

        The phases add up to "total" less what was in no span; concurrent work comes on top.
        """
        taken = self.so_far()
        self._phases, self._concurrent = {}, {}
        self._start += taken["total"]
        return taken

    def so_far(self) -> dict[str, float]:
        """What `take` would return inside of the present span, which is not in it; goes on."""
        total = self._now() - self._start
        return {**self._phases, **self._concurrent, "total": total}

    def _add(self, name: str, seconds: float) -> None:
        self._phases[name] = self._phases.get(name, 0.0) + seconds
