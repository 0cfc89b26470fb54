"""Spikes of the gradient norm: norms far above the median of the last ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW = 100
"""Norms that the median is over: of the last optimizer steps, spikes and skipped ones among them,
so that a lasting change is no spike after half as many steps."""
FEWEST = 20
"""Before there are so many, none is a spike."""


class GradientNorms:
    """The last norms; a checkpoint keeps them."""

    def __init__(self, factor: float) -> None:
        """A norm above `factor` times the median is a spike; 0: none is."""
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=WINDOW)

    @property
    def median(self) -> float:
        """Of the last norms; NaN while they are too few."""
        return median(self._recent) if len(self._recent) >= FEWEST else math.nan

    @property
    def largest(self) -> float:
        """The largest norm that is no spike; inf where every norm is none."""
        usual = self.median
        return self._factor * usual if self._factor and usual > 0 else math.inf

    def observe(self, norm: float) -> None:
        """Count the norm of an optimizer step; one that is not finite does not count."""
        if math.isfinite(norm):
            self._recent.append(norm)

    def state_dict(self) -> list[float]:
        """Oldest first."""
        return list(self._recent)

    def load_state_dict(self, state: Iterable[float]) -> None:
        """Continue from `state_dict`."""
        self._recent = deque(state, maxlen=WINDOW)
