"""Context parallelism: each rank's part of a packed micro-batch.

A row of T tokens is cut into 2 x size chunks; rank r holds chunks r and 2 x size - 1 - r, so that
the early tokens of long sequences, which see few keys, and the late ones, which see many, are
shared out. A segment that a cut goes through becomes two; attention gathers keys and values from
all ranks, and each piece sees its segment from the beginning to its own last row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from passk_fast.data.types import ContextPart, PackedBatch


def chunks_of(rank: int, size: int, total: int) -> list[tuple[int, int]]:
    """[first, last) rows of a rank's two chunks; `total` must be a multiple of 2 x size."""
    width = total // (2 * size)
    return [(c * width, (c + 1) * width) for c in (rank, 2 * size - 1 - rank)]


def context_part(batch: PackedBatch, rank: int, size: int) -> PackedBatch:
    """The rows of context-parallel rank `rank` of `size`, with what their segments see.

    ValueError unless the row is a multiple of 2 x size tokens.
    """
    total = len(batch.tokens_T)
    if total % (2 * size):
        raise ValueError(f"{total} packed tokens are not a multiple of 2 x {size} ranks")
    borders = batch.cu_seqlens.tolist()
    prefixes = batch.prefix_B or (-1,) * (len(borders) - 1)
    mine = chunks_of(rank, size, total)
    lengths, keys = [], []
    for first, last in mine:
        for b, prefix in enumerate(prefixes):
            begin, end = max(first, borders[b]), min(last, borders[b + 1])
            if begin < end:
                lengths.append(end - begin)
                before = (borders[prefix], borders[prefix + 1]) if prefix >= 0 else (0, 0)
                keys.append(np.concatenate((np.arange(*before), np.arange(borders[b], end))))
    kv_lengths = [len(k) for k in keys]
    order = np.concatenate(
        [np.arange(*chunk) for r in range(size) for chunk in chunks_of(r, size, total)]
    )
    rows = torch.from_numpy(np.concatenate([np.arange(*chunk) for chunk in mine]))
    return replace(
        batch,
        tokens_T=batch.tokens_T[rows],
        positions_T=batch.positions_T[rows],
        targets_T=batch.targets_T[rows],
        mask_T=batch.mask_T[rows],
        advantages_T=batch.advantages_T[rows],
        rollout_logprobs_T=batch.rollout_logprobs_T[rows],
        sequence_index_T=batch.sequence_index_T[rows],
        routed=batch.routed.rows(rows) if batch.routed else None,
        experts_TMK=None if batch.experts_TMK is None else batch.experts_TMK[rows],
        cu_seqlens=_borders(lengths),
        max_seqlen=max(lengths),
        real_tokens=batch.real_tokens // size,
        prefix_B=None,
        context=ContextPart(
            kv_rows=torch.from_numpy(np.concatenate(keys)),
            cu_seqlens_kv=_borders(kv_lengths),
            max_seqlen_kv=max(kv_lengths),
            gathered_T=torch.from_numpy(np.argsort(order)),
        ),
    )


def _borders(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
