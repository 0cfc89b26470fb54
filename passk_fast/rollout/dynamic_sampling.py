"""Dynamic sampling (DAPO): how many prompts to sample for the wanted number of informative groups.

A step samples rounds of prompts until it has seen `wanted` groups with non-zero advantage or has
sampled `cap` prompts. The batch ends with the last group wanted, in the order of prompts, so that
short responses gain nothing over long ones; informative groups behind it are surplus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from passk_fast.data.types import RolloutGroup
from passk_fast.rollout.collect import CollectStats

_MEMORY = 0.9
"""Weight of the past in the running share of informative groups, for each step."""
_SMALLEST_SHARE = 0.02


@dataclass
class InformativeShare:
    """The share of informative groups seen so far, with the past fading; a checkpoint keeps it."""

    informative: float = 0.0
    """Informative groups, discounted."""
    sampled: float = 0.0
    """Sampled groups, discounted."""

    def observe(self, informative: int, sampled: int) -> None:
        """Count one step's groups."""
        self.informative = _MEMORY * self.informative + informative
        self.sampled = _MEMORY * self.sampled + sampled

    def expected(self, informative: int = 0, sampled: int = 0) -> float:
        """The share to expect, in (0, 1], given the counts of a step that is under way.

        1 before anything was seen, so that nothing is sampled in vain.
        """
        total = _MEMORY * self.sampled + sampled
        seen = _MEMORY * self.informative + informative
        return max(_SMALLEST_SHARE, seen / total) if total else 1.0


def round_size(missing: int, share: float, room: int, multiple: int = 1) -> int:
    """Prompts to sample next for `missing` more informative groups, `room` at most.

    `share` is the expected share of informative groups. The size is rounded up to a `multiple` (of
    the number of engines, so that none is idle) where there is room.
    """
    size = math.ceil(missing / share)
    return min(room, math.ceil(size / multiple) * multiple)


def batch_end(informative: Sequence[bool], wanted: int) -> int:
    """How many of the sampled groups make the batch: all up to the `wanted`-th informative one."""
    seen = 0
    for i, is_informative in enumerate(informative):
        seen += is_informative
        if seen == wanted:
            return i + 1
    return len(informative)


@dataclass(frozen=True, kw_only=True)
class SampledBatch:
    """Everything that a step sampled, in the order of prompts.

    Example: 32 groups wanted and 48 sampled, the 32nd informative one at index 44: `end` is 45.
    """

    indices: list[int]
    """Of the prompts in the data set, P."""
    groups: list[RolloutGroup]
    """P groups of N responses each."""
    advantages_PN: np.ndarray
    """float64 [P, N]"""
    end: int
    """The batch is `groups[:end]`; what follows is not trained on."""
    rounds: int
    stats: CollectStats
    off_policy_steps: int = 0
    """Steps of training between the weights that sampled it and those that it trains."""

    @property
    def informative_P(self) -> np.ndarray:
        """bool [P]: groups with non-zero advantage."""
        return informative_groups(self.advantages_PN)


def informative_groups(advantages_PN: np.ndarray) -> np.ndarray:
    """bool [P]: groups in which a response has non-zero advantage."""
    found: np.ndarray = (advantages_PN != 0.0).any(axis=1)
    return found


@dataclass(frozen=True, kw_only=True)
class RoundSampler:
    """What a round is made of: prompts, their responses, their advantages."""

    take: Callable[[int], list[int]]
    """`take(count)`: indices of the next prompts."""
    collect: Callable[[list[int], int], tuple[list[RolloutGroup], CollectStats]]
    """`collect(indices, first)`: their groups; `first` is the number sampled before in this
    step."""
    advantages: Callable[[list[RolloutGroup]], np.ndarray]
    """Advantages of one round's groups, float64 [P, N]."""


@dataclass
class _Sampled:
    """What the rounds of a step have brought so far."""

    indices: list[int] = field(default_factory=list)
    groups: list[RolloutGroup] = field(default_factory=list)
    advantages: list[np.ndarray] = field(default_factory=list)
    """[P, N] of each round."""
    informative: list[bool] = field(default_factory=list)
    stats: CollectStats = field(default_factory=CollectStats)


def sample_batch(
    sampler: RoundSampler, *, wanted: int, cap: int, share: InformativeShare, multiple: int = 1
) -> SampledBatch:
    """Rounds of prompts until `wanted` groups are informative or `cap` prompts were sampled.

    With cap = wanted there is one round, whatever comes of it. `share` is brought up to date;
    `multiple` is that of `round_size`.
    """
    got = _Sampled()
    while (missing := wanted - sum(got.informative)) > 0 and (room := cap - len(got.groups)) > 0:
        expected = share.expected(sum(got.informative), len(got.groups))
        indices = sampler.take(round_size(missing, expected, room, multiple))
        groups, stats = sampler.collect(indices, len(got.groups))
        advantages_PN = sampler.advantages(groups)
        got.indices += indices
        got.groups += groups
        got.advantages.append(advantages_PN)
        got.informative += informative_groups(advantages_PN).tolist()
        got.stats += stats
    share.observe(sum(got.informative), len(got.groups))
    return SampledBatch(
        indices=got.indices,
        groups=got.groups,
        advantages_PN=np.concatenate(got.advantages),
        end=batch_end(got.informative, wanted) if cap > wanted else len(got.groups),
        rounds=len(got.advantages),
        stats=got.stats,
    )
