"""Which rows of a packed batch the output layer computes, in which chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from passk_fast.kernels.shapes import Bool, Float, Int
from passk_fast.kernels.shard import Shard


@dataclass(frozen=True)
class Chunk:
    """One chunk of n rows. Sequence parallel: n / tp rows of each rank's part, in rank order."""

    rows: Tensor
    """int64 [n], rows of the whole batch; 0 where not valid."""
    slots: Tensor
    """int64 [n], the same with T where not valid: the slot behind the last row."""
    valid: Tensor
    """bool [n]; parts are padded to one length."""
    local: Tensor
    """int64 [n or n / tp], rows of this rank's hidden states; 0 where not valid."""
    local_slots: Tensor
    """The same, with the number of local rows where not valid."""


def informative_rows(
    mask: Bool[Tensor, " T"], advantages: Float[Tensor, " T"]
) -> Int[Tensor, " L"]:
    """int64 [L]: rows in `mask` with a non-zero advantage, ascending; call it on CPU tensors.

    Made when a batch is packed and passed as `LossRows.row_index`, it lets the kernels drop the
    other rows on a GPU without waiting for the device. Example: mask [1, 1, 0], advantages
    [0., 2., 3.] give [1].

    Raises:
        ValueError: a tensor is not on the CPU.
    """
    if mask.device.type != "cpu" or advantages.device.type != "cpu":
        raise ValueError("mask and advantages must be CPU tensors: counting on a GPU waits for it.")
    return (mask & (advantages != 0)).nonzero()[:, 0]


def plan_chunks(
    index: Tensor, num_rows: int, shard: Shard, parts: int, chunk_rows: int, device: torch.device
) -> list[Chunk]:
    """Chunks of at most `chunk_rows` of the rows `index` (int64 [L] on the CPU).

    `parts`: 1, or the number of ranks when hidden states are split over them by rows.
    """
    per_part = num_rows // parts
    pieces = [index[(index // max(1, per_part)) == part] for part in range(parts)]
    longest = max(len(piece) for piece in pieces)
    step = max(1, chunk_rows // parts)
    chunks = []
    for start in range(0, longest, step):
        size = min(step, longest - start)
        rows = torch.full((parts, size), -1, dtype=torch.int64)
        for part, piece in enumerate(pieces):
            got = piece[start : start + size]
            rows[part, : len(got)] = got
        own = rows[shard.rank if parts > 1 else 0]
        local = torch.where(own < 0, own, own % max(1, per_part))
        flat = rows.flatten()
        chunks.append(
            Chunk(
                rows=flat.clamp(min=0).to(device, non_blocking=True),
                slots=torch.where(flat < 0, num_rows, flat).to(device, non_blocking=True),
                valid=(flat >= 0).to(device, non_blocking=True),
                local=local.clamp(min=0).to(device, non_blocking=True),
                local_slots=torch.where(local < 0, per_part, local).to(device, non_blocking=True),
            )
        )
    return chunks
