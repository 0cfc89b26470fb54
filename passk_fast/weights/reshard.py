"""The plan of a resharding: what every rank keeps, sends and receives; computed by csrc/."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passk_fast import native
from passk_fast.errors import ConfigError
from passk_fast.weights.placement import Side, Tensors

ROUND, SRC, DST, TENSOR, SRC_PARAM, SRC_ROW, SRC_COL, DST_PARAM, DST_ROW, DST_COL, ROWS, COLS = (
    range(12)
)
"""Columns of `ReshardPlan.transfers`."""


@dataclass(frozen=True, kw_only=True)
class ReshardPlan:
    """Rectangles that move, and their bytes by rank.

    In one round a rank sends at most one message to another, and sends and receives at most
    `round_bytes` in all. A message is the rectangles of its (round, sender, receiver) in the order
    of `transfers`, which is the same on all ranks: so the two ends agree without a word, and
    because a round's messages are all posted at once none waits for another.
    """

    transfers: NDArray[np.int32]
    """[n, 12], columns as named above. A kept rectangle has round -1 and SRC = DST."""
    source_names: list[str]
    destination_names: list[str]
    sent: NDArray[np.int64]
    received: NDArray[np.int64]
    kept: NDArray[np.int64]
    rounds: int


def plan_reshard(
    tensors: Tensors,
    source: Side,
    destination: Side,
    *,
    element_bytes: int,
    round_bytes: int = 256 << 20,
    rank: int = -1,
) -> ReshardPlan:
    """The plan for one rank, or for all (`rank` -1). The same on every rank.

    A rank receives exactly the bytes it lacks, each from a rank that holds it, the one that has
    sent least so far; a rectangle larger than round_bytes / 8 is cut by rows, so that it may come
    from several. ConfigError when a tensor is nowhere complete.
    """
    world = 1 + max(r for side in (source, destination) for ranks in side.ranks for r in ranks)
    try:
        transfers, sent, received, kept, rounds = native.plan_reshard(
            len(tensors),
            np.concatenate(source.parts),
            [len(part) for part in source.parts],
            source.ranks,
            np.concatenate(destination.parts),
            [len(part) for part in destination.parts],
            destination.ranks,
            world,
            element_bytes,
            round_bytes,
            rank,
        )
    except ValueError as error:
        words = str(error).split()
        if words[0] == "tensor" and "holder" in words:
            name = tensors.name(int(words[1]))
            raise ConfigError(f"No ranks hold all of {name}: the meshes do not match.") from None
        raise
    return ReshardPlan(
        transfers=transfers,
        source_names=source.names,
        destination_names=destination.names,
        sent=np.array(sent),
        received=np.array(received),
        kept=np.array(kept),
        rounds=rounds,
    )
