"""Runs a resharding plan over a process group: messages round by round, all of a round at once.

Small rectangles for one rank are packed into one message. A large one is a message by itself, which
leaves from and arrives in the parameter where it lies there in one piece. Buffers hold one round's
other messages, in and out: `round_bytes` each at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from passk_fast.errors import ConfigError, DivergedError, LostRankError
from passk_fast.process_group import gather_json
from passk_fast.weights.placement import Side, Tensors
from passk_fast.weights.reshard import (
    COLS,
    DST,
    DST_COL,
    DST_PARAM,
    DST_ROW,
    ROUND,
    ROWS,
    SRC,
    SRC_COL,
    SRC_PARAM,
    SRC_ROW,
    TENSOR,
    ReshardPlan,
)

_ALONE = 1 << 16
"""Elements from which a rectangle is a message by itself: the two ends must agree."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns of one parameter, read as a matrix."""

    name: str
    row: int
    col: int
    rows: int
    cols: int

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The view [rows, cols]."""
        tensor = parameters[self.name].detach()
        matrix = tensor.view(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
        return matrix[self.row : self.row + self.rows, self.col : self.col + self.cols]


@dataclass(frozen=True)
class Message:
    """A large rectangle, or all small ones, that one rank has for another in one round."""

    peer: int
    rectangles: list[Rectangle]
    tensors: list[int]
    """Number of the Hugging Face tensor that each rectangle belongs to."""
    tag: int
    """Number among the messages between these two ranks in this round."""

    def parts(self, buffer: Tensor) -> Iterator[tuple[Rectangle, Tensor]]:
        """Rectangles and their parts [rows, columns] of the message's buffer."""
        at = 0
        for rectangle in self.rectangles:
            size = rectangle.rows * rectangle.cols
            yield rectangle, buffer[at : at + size].view(rectangle.rows, rectangle.cols)
            at += size

    @property
    def elements(self) -> int:
        return sum(r.rows * r.cols for r in self.rectangles)


class Exchange:
    """One rank's part of a plan. `run` and `verify` are collectives over `group`'s ranks."""

    def __init__(
        self,
        plan: ReshardPlan,
        tensors: Tensors,
        *,
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`dtype` is the destination's: what is not of it is cast before it is sent."""
        self.rank = rank
        self.dtype = dtype
        self.device = device
        self.group = group
        self._tensors = tensors
        moves = plan.transfers
        kept = moves[moves[:, ROUND] < 0]
        out = moves[(moves[:, ROUND] >= 0) & (moves[:, SRC] == rank)]
        into = moves[(moves[:, ROUND] >= 0) & (moves[:, DST] == rank)]
        kept = kept[kept[:, SRC] == rank]
        self.kept = list(
            zip(_sources(plan, kept), _targets(plan, kept), kept[:, TENSOR].tolist(), strict=True)
        )
        self.sends = _messages(out, _sources(plan, out), DST, plan.rounds)
        self.receives = _messages(into, _targets(plan, into), SRC, plan.rounds)
        self.bytes_sent = dtype.itemsize * sum(m.elements for ms in self.sends for m in ms)
        self.bytes_received = dtype.itemsize * sum(m.elements for ms in self.receives for m in ms)

    @torch.no_grad()
    def run(self, sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Fill `targets` from all ranks' `sources`. LostRankError names a rank that went silent."""
        sent, received = (
            torch.empty(_largest(messages), dtype=self.dtype, device=self.device)
            for messages in (self.sends, self.receives)
        )
        for round_, (sends, receives) in enumerate(zip(self.sends, self.receives, strict=True)):
            outgoing = list(self._buffers(sends, sources, sent))
            for message, buffer, packed in outgoing:
                for rectangle, part in message.parts(buffer) if packed else ():
                    part.copy_(rectangle.of(sources))
            incoming = list(self._buffers(receives, targets, received))
            work = self._post(outgoing, incoming, round_)
            if round_ == 0:
                self._keep(sources, targets)
            self._wait(work, round_)
            for message, buffer, packed in incoming:
                for rectangle, part in message.parts(buffer) if packed else ():
                    rectangle.of(targets).copy_(part)
        if not self.sends:
            self._keep(sources, targets)

    def _buffers(
        self, messages: list[Message], parameters: Mapping[str, Tensor], spare: Tensor
    ) -> Iterator[tuple[Message, Tensor, bool]]:
        """(message, its buffer, whether that is a part of `spare` and not of a parameter)."""
        at = 0
        for message in messages:
            if len(message.rectangles) == 1:
                view = message.rectangles[0].of(parameters)
                if view.dtype == self.dtype and view.is_contiguous():
                    yield message, view, False
                    continue
            yield message, spare[at : at + message.elements], True
            at += message.elements

    def _keep(self, sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        for source, target, _ in self.kept:
            target.of(targets).copy_(source.of(sources))

    def _post(
        self,
        outgoing: list[tuple[Message, Tensor, bool]],
        incoming: list[tuple[Message, Tensor, bool]],
        round_: int,
    ) -> list[tuple[str, list[int], dist.Work]]:
        """All of a round's messages: (what, peers, handle)."""
        operations = [
            dist.P2POp(call, buffer, message.peer, self.group, tag=message.tag)
            for call, messages in ((dist.irecv, incoming), (dist.isend, outgoing))
            for message, buffer, _ in messages
        ]
        if not operations:
            return []
        names = [(f"from rank {m.peer}", m.peer) for m, _, _ in incoming]
        names += [(f"to rank {m.peer}", m.peer) for m, _, _ in outgoing]
        try:
            handles = dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            peers = ", ".join(sorted({name for name, _ in names}))
            raise LostRankError(
                f"Rank {self.rank}: weights {peers} could not be moved in round {round_}: {error}"
            ) from error
        if len(handles) == len(names):
            return [(n, [p], h) for (n, p), h in zip(names, handles, strict=True)]
        everyone = ", ".join(name for name, _ in names)  # NCCL: one handle for all
        return [(everyone, [p for _, p in names], h) for h in handles]

    def _wait(self, work: list[tuple[str, list[int], dist.Work]], round_: int) -> None:
        for what, _, handle in work:
            try:
                handle.wait()
            except RuntimeError as error:
                raise LostRankError(
                    f"Rank {self.rank}: weights {what} did not move in round {round_}: {error}"
                ) from error

    # ---- verification --------------------------------------------------------------------------

    @torch.no_grad()
    def verify(self, sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Checksums of every rectangle, at its holder and where it went.

        DivergedError on every rank, naming the parameter and both ranks, when any two differ.
        """
        wrong = [
            (target.name, self._tensors.name(tensor), self.rank, self.rank)
            for source, target, tensor in self.kept
            if self._checksum(source, sources) != self._checksum(target, targets)
        ]
        theirs = self._exchange_checksums(sources)
        for messages in self.receives:
            for message in messages:
                expected = theirs[message.peer]
                for rectangle, tensor in zip(message.rectangles, message.tensors, strict=True):
                    if self._checksum(rectangle, targets) != next(expected):
                        name = self._tensors.name(tensor)
                        wrong.append((rectangle.name, name, message.peer, self.rank))
        found = [entry for entries in gather_json(wrong, self.group) for entry in entries]
        if found:
            lines = [
                f"{name} (holding {tensor}) on rank {there}, from rank {here}"
                for name, tensor, here, there in found[:5]
            ]
            more = f", and {len(found) - 5} more" if len(found) > 5 else ""
            raise DivergedError(
                f"The engine's weights differ from the trainer's in {len(found)} places: "
                f"{'; '.join(lines)}{more}. Resume from the last checkpoint."
            )

    def _exchange_checksums(self, sources: Mapping[str, Tensor]) -> dict[int, Iterator[int]]:
        """By sending rank: the checksums of what this rank received from it, in order."""
        mine: dict[int, list[int]] = {}
        counts: dict[int, int] = {}
        for messages in self.sends:
            for message in messages:
                sums = [self._checksum(rectangle, sources) for rectangle in message.rectangles]
                mine.setdefault(message.peer, []).extend(sums)
        for messages in self.receives:
            for message in messages:
                counts[message.peer] = counts.get(message.peer, 0) + len(message.rectangles)
        out = {p: torch.tensor(sums, device=self.device) for p, sums in sorted(mine.items())}
        into = {
            p: torch.empty(n, dtype=torch.int64, device=self.device)
            for p, n in sorted(counts.items())
        }
        operations = [dist.P2POp(dist.irecv, x, p, self.group) for p, x in into.items()]
        operations += [dist.P2POp(dist.isend, x, p, self.group) for p, x in out.items()]
        for handle in dist.batch_isend_irecv(operations) if operations else []:
            handle.wait()
        return {peer: iter(sums.tolist()) for peer, sums in into.items()}

    def _checksum(self, rectangle: Rectangle, parameters: Mapping[str, Tensor]) -> int:
        return checksum(rectangle.of(parameters), self.dtype)


def checksum(x: Tensor, dtype: torch.dtype) -> int:
    """A 64-bit sum over the bits of `x` as `dtype`, each weighted by its place."""
    bits = x.to(dtype).contiguous().view(_BITS[dtype.itemsize]).reshape(-1).to(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device) * 0x9E3779B97F4A7C1
    return int((bits * (places | 1)).sum())


def check_targets(side: Side, rank: int, targets: Mapping[str, Tensor]) -> None:
    """ConfigError unless `targets` are the parameters that `side` has on `rank`, or larger.

    A parameter without a rectangle on this rank (it holds only padding) may be there.
    """
    shapes = side.shapes(rank)
    unknown = sorted(set(targets) - set(side.names))
    absent = sorted(set(shapes) - set(targets))
    if unknown or absent:
        raise ConfigError(
            "The layout table and the model do not agree on parameters: only in the table: "
            f"{absent[:3] or 'none'}; only in the model: {unknown[:3] or 'none'}."
        )
    for name, (rows, cols) in shapes.items():
        tensor = targets[name]
        width = tensor.shape[-1] if tensor.ndim > 1 else 1
        if width != cols or tensor.numel() // width < rows:
            raise ConfigError(
                f"{name} has shape {tuple(tensor.shape)}; the layout table needs {rows} x {cols}."
            )


def _sources(plan: ReshardPlan, moves: NDArray[np.int32]) -> list[Rectangle]:
    columns = moves[:, [SRC_PARAM, SRC_ROW, SRC_COL, ROWS, COLS]].tolist()
    return [Rectangle(plan.source_names[p], *rest) for p, *rest in columns]


def _targets(plan: ReshardPlan, moves: NDArray[np.int32]) -> list[Rectangle]:
    columns = moves[:, [DST_PARAM, DST_ROW, DST_COL, ROWS, COLS]].tolist()
    return [Rectangle(plan.destination_names[p], *rest) for p, *rest in columns]


def _messages(
    moves: NDArray[np.int32], rectangles: list[Rectangle], peer_column: int, rounds: int
) -> list[list[Message]]:
    """Messages by round, then by peer; tag 0 has the small rectangles, in the plan's order."""
    out: list[dict[tuple[int, int], Message]] = [{} for _ in range(rounds)]
    large: dict[tuple[int, int], int] = {}
    columns = moves[:, [ROUND, peer_column, TENSOR]].tolist()
    for (round_, peer, tensor), rectangle in zip(columns, rectangles, strict=True):
        tag = 0
        if rectangle.rows * rectangle.cols >= _ALONE:
            tag = large[round_, peer] = large.get((round_, peer), 0) + 1
        message = out[round_].setdefault((peer, tag), Message(peer, [], [], tag))
        message.rectangles.append(rectangle)
        message.tensors.append(tensor)
    return [[messages[key] for key in sorted(messages)] for messages in out]


def _largest(rounds: list[list[Message]]) -> int:
    return max((sum(m.elements for m in messages) for messages in rounds), default=0)
