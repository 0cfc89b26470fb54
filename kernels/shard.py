"""Where a rank's columns stand in the vocabulary, and the collectives over its group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.kernels.shapes import Group

Work = dist.Work | None
"""Handle of a collective that may still run; None when it is done."""


@dataclass(frozen=True)
class Shard:
    """This rank's columns: `num_columns` true ones, the first of which is column `first`."""

    group: Group
    first: int
    num_columns: int
    vocab: int
    rank: int
    size: int

    def owned(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows' targets lie in this shard [T], and their local columns (0 elsewhere) [T]."""
        local = targets - self.first
        owned = (local >= 0) & (local < self.num_columns)
        return owned, local.masked_fill(~owned, 0)

    def sum(self, values: Tensor, *, async_op: bool = False) -> Work:
        """SUM all-reduce in place; returns the work handle (None at one rank)."""
        if self.size == 1:
            return None
        work: Work = dist.all_reduce(
            values, op=dist.ReduceOp.SUM, group=self.group, async_op=async_op
        )
        return work

    def max(self, values: Tensor) -> None:
        """MAX all-reduce in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)

    def gather(self, part: Tensor, *, async_op: bool = False) -> tuple[Tensor, Work]:
        """Every rank's `part` [n, ...], stacked in rank order [size * n, ...], and the handle."""
        whole = part.new_empty((self.size * part.shape[0], *part.shape[1:]))
        work = dist.all_gather_into_tensor(
            whole, part.contiguous(), group=self.group, async_op=async_op
        )
        return whole, work

    def scatter_sum(self, whole: Tensor, *, async_op: bool = False) -> tuple[Tensor, Work]:
        """This rank's slice [n, ...] of the sum over ranks of `whole` [size * n, ...]."""
        part = whole.new_empty((whole.shape[0] // self.size, *whole.shape[1:]))
        work = dist.reduce_scatter_tensor(
            part, whole.contiguous(), group=self.group, async_op=async_op
        )
        return part, work


def shard_of(local_width: int, group: Group, vocab: int | None) -> Shard:
    """Place a shard of `local_width` columns in the vocabulary; ValueError when `vocab` is out."""
    size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    padded = size * local_width
    true_vocab = padded if vocab is None else vocab
    if not 0 < true_vocab <= padded:
        raise ValueError(f"vocab must be in 1..{padded} (shards x local columns), got {vocab}.")
    first = rank * local_width
    columns = max(0, min(local_width, true_vocab - first))
    return Shard(group if size > 1 else None, first, columns, true_vocab, rank, size)


def as_temperature(temperature: float | Tensor, rows: int, device: torch.device) -> float | Tensor:
    """A float, or a [T] tensor on `device`; ValueError when it is not positive or the wrong shape.

    The entries of a tensor on another device than the CPU are not read (that would wait for the
    device): a zero or negative one gives NaN there.
    """
    if not isinstance(temperature, Tensor):
        value = float(temperature)
        if not (0 < value < float("inf")):
            raise ValueError(f"temperature must be finite and above zero, got {temperature}.")
        return value
    if temperature.shape != (rows,):
        raise ValueError(
            f"temperature must be a number or [T] = [{rows}], got {tuple(temperature.shape)}."
        )
    if temperature.device != device:
        raise ValueError(f"temperature is on {temperature.device}, the other inputs on {device}.")
    if device.type == "cpu" and rows and not (temperature > 0).all():
        raise ValueError("temperature must be above zero in every row.")
    return temperature
