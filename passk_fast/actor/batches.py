"""Micro-batches on their way from packing to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from passk_fast.data.types import ContextPart, PackedBatch, RoutedRows

_ON_HOST = ("row_index_L", "experts_TMK")
"""Tensors of a batch that stay on the CPU."""
Part = TypeVar("Part", bound=PackedBatch | ContextPart | RoutedRows)


def with_step_size(batch: PackedBatch, sequences: int | None) -> PackedBatch:
    """A micro-batch that knows how many sequences the whole step has: routers average over them.

    None: the model is dense, and `routed` is dropped.
    """
    if batch.routed is None or sequences is None:
        return replace(batch, routed=None)
    return replace(batch, routed=replace(batch.routed, step_sequences=max(1, sequences)))


def moved_to(batch: Part, device: torch.device) -> Part:
    """A batch, or a part of one, with its tensors on a device; some stay on the CPU always."""
    if device.type == "cpu":
        return batch
    moved: dict[str, object] = {}
    for name, value in vars(batch).items():
        if name in _ON_HOST:
            continue
        if isinstance(value, Tensor):
            moved[name] = value.to(device, non_blocking=True)
        elif isinstance(value, ContextPart | RoutedRows):
            moved[name] = moved_to(value, device)
    rebuilt = cast(Callable[..., Part], replace)
    return rebuilt(batch, **moved)
