"""Causal attention through padded calls, on a CPU and in float32.

Segments of like lengths are padded together: with one layout for all, one long sequence among many
short ones would cost as much as if all were as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from passk_fast.actor.scores import Scores, attend

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Segments of like lengths, padded on the right."""

    rows: Int[Tensor, "B a"]
    """Their packed rows; padding repeats the last one."""
    key_rows: Int[Tensor, "B b"]
    """The packed rows of their keys, their own the last; padded likewise."""
    last: Int[Tensor, "B a"] | None
    """The last key that each query sees; None where the keys are the segments' own rows."""

    def visible(self, window: int) -> Tensor | None:
        """bool [B, 1, a, b]: the keys that each query sees; None for `attend`'s own causal mask."""
        if self.last is None:
            return None
        last = self.last[..., None]
        key = torch.arange(self.key_rows.shape[1], device=last.device)
        visible = key <= last
        if window:
            visible &= last - key < window
        return visible[:, None]


@dataclass(frozen=True)
class Parts:
    """All segments of a micro-batch, in parts."""

    parts: tuple[Part, ...]
    slot_of_row: Int[Tensor, " T"]
    """Where a packed row is among the parts' rows, one part behind the other."""


def key_parts(cu_q: Tensor, cu_k: Tensor, kv_rows: Tensor | None) -> Parts:
    """Segments with their own lists of keys, by length.

    `kv_rows` are the packed rows of the keys between borders `cu_k`, a segment's own the last of
    each; None: the keys are the segment's own rows.
    """

    def to(x: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(cu_q.device)

    starts, key_starts = (np.asarray(cu.cpu(), np.int64) for cu in (cu_q, cu_k))
    rows_of_keys = np.arange(starts[-1]) if kv_rows is None else np.asarray(kv_rows.cpu())
    lengths, key_lengths = np.diff(starts), np.diff(key_starts)
    parts, slot_of_row, base = [], np.empty(starts[-1], np.int64), 0
    for chosen in _classes(lengths, key_lengths):
        own, keys = lengths[chosen, None], key_lengths[chosen, None]
        at, key_at = np.arange(own.max()), np.arange(keys.max())
        rows = starts[chosen, None] + np.minimum(at, own - 1)
        key_rows = rows_of_keys[key_starts[chosen, None] + np.minimum(key_at, keys - 1)]
        slots = base + np.arange(rows.size).reshape(rows.shape)
        slot_of_row[rows[at < own]] = slots[at < own]
        base += rows.size
        last = None if (own == keys).all() else np.minimum(keys - own + at, keys - 1)
        parts.append(Part(to(rows), to(key_rows), None if last is None else to(last)))
    return Parts(tuple(parts), to(slot_of_row))


def _classes(lengths: Ints, key_lengths: Ints) -> Iterable[Ints]:
    """Indices of the segments to pad together: those whose own rows, and the keys before them, are
    as many in binary digits, so that padding at most doubles them."""
    classes: dict[tuple[int, int], list[int]] = {}
    for b in np.flatnonzero(lengths).tolist():
        own, before = int(lengths[b]), int(key_lengths[b] - lengths[b])
        classes.setdefault((own.bit_length(), before.bit_length()), []).append(b)
    return [np.array(chosen) for chosen in classes.values()]


def padded_attention(q: Tensor, k: Tensor, v: Tensor, parts: Parts, scores: Scores) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d]: a padded call for each part.

    No real query sees padding, so it gets no gradient.
    """

    def taken(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])

    out = []
    for part in parts.parts:
        keys, values = (taken(x, part.key_rows) for x in (k, v))
        visible = part.visible(scores.window)
        out.append(attend(taken(q, part.rows), keys, values, scores, visible))
    return torch.cat(out).index_select(0, parts.slot_of_row)
