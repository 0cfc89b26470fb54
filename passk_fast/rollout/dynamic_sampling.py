"""How many prompts to draw so that a batch holds the wanted number of groups with a gradient.

A step draws rounds of prompts until it has seen `wanted` live groups or drawn `cap` prompts. The
batch is what was drawn up to and including the last wanted live group, in the order of prompts, so
that quick responses gain nothing over slow ones; live groups behind it are surplus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from passk_fast.data.types import RolloutGroup
from passk_fast.rollout.collect import CollectStats

_MEMORY = 0.9
"""Weight of the past in the running share of live groups, for each step."""
_SMALLEST_SHARE = 0.02


@dataclass
class InformativeShare:
    """The share of live groups seen so far, with the past fading; a checkpoint keeps it."""

    live: float = 0.0
    """Live groups, discounted."""
    drawn: float = 0.0
    """Groups, discounted."""

    def observe(self, live: int, drawn: int) -> None:
        """Count one step's groups."""
        self.live = _MEMORY * self.live + live
        self.drawn = _MEMORY * self.drawn + drawn

    def expected(self, live: int = 0, drawn: int = 0) -> float:
        """In (0, 1], given what a step in progress has drawn so far.

        1 before anything was seen, so that nothing is sampled in vain.
        """
        total = _MEMORY * self.drawn + drawn
        return max(_SMALLEST_SHARE, (_MEMORY * self.live + live) / total) if total else 1.0


def round_size(missing: int, share: float, room: int, multiple: int = 1) -> int:
    """Prompts to draw next for `missing` more live groups, `room` at most.

    `share` is the expected share of live groups; the size is rounded up to a `multiple` (of the
    number of engines, so that none idles) where there is room.
    """
    size = math.ceil(missing / share)
    return min(room, math.ceil(size / multiple) * multiple)


def batch_end(live: Sequence[bool], wanted: int) -> int:
    """How many of the groups drawn make the batch: all up to the `wanted`-th live one."""
    seen = 0
    for i, alive in enumerate(live):
        seen += alive
        if seen == wanted:
            return i + 1
    return len(live)


@dataclass
class SampledBatch:
    """Everything a step sampled, in the order of prompts."""

    indices: list[int] = field(default_factory=list)
    """Of the prompts in the data set."""
    groups: list[RolloutGroup] = field(default_factory=list)
    end: int = 0
    """The batch is `groups[:end]`; what follows was sampled in vain."""
    rounds: int = 0
    stats: CollectStats = field(default_factory=CollectStats)


def draw(
    take: Callable[[int], list[int]],
    collect: Callable[[list[int], int], tuple[list[RolloutGroup], CollectStats]],
    live: Callable[[list[RolloutGroup]], np.ndarray],
    *,
    wanted: int,
    cap: int,
    share: InformativeShare,
    multiple: int = 1,
) -> SampledBatch:
    """Rounds of prompts until `wanted` groups are live or `cap` prompts were drawn.

    `take(count)` gives the next prompts; `collect(indices, first)` samples them, `first` being the
    number drawn before; `live(groups)` says which groups have a gradient, bool [P]. With
    cap = wanted there is one round. `share` is brought up to date.
    """
    drawn, alive = SampledBatch(), np.zeros(0, dtype=bool)
    while True:
        missing, room = wanted - int(alive.sum()), cap - len(drawn.groups)
        if missing <= 0 or room <= 0:
            break
        expected = share.expected(int(alive.sum()), len(drawn.groups))
        indices = take(round_size(missing, expected, room, multiple))
        groups, stats = collect(indices, len(drawn.groups))
        drawn.indices += indices
        drawn.groups += groups
        drawn.stats += stats
        drawn.rounds += 1
        alive = live(drawn.groups)
    share.observe(int(alive.sum()), len(drawn.groups))
    drawn.end = batch_end(alive.tolist(), wanted) if cap > wanted else len(drawn.groups)
    return drawn
