"""Rows of the layout table as rectangles: what each rank holds of which tensor, and where.

A tensor is a matrix [rows, columns] (a vector has one column), a parameter too: three-dimensional
ones (the engine's experts) are read as [experts x rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from passk_fast.model.divisibility import check_divisible
from passk_fast.model.shape import ModelShape
from passk_fast.weights.layout import Place, Row, Spec, Split, table
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh

_FIELDS = ("tensor", "param", "r0", "r1", "c0", "c1", "row", "col")


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """All Hugging Face tensors of a model, numbered by row, then layer, then expert."""

    shape: ModelShape
    rows: tuple[Row, ...]
    first: tuple[int, ...]
    """Number of each row's first tensor, and the end."""

    @classmethod
    def of(cls, shape: ModelShape, spec: Spec = Spec.LOCAL) -> Tensors:
        """The tensors of a model."""
        rows = table(shape, spec)
        first = [0]
        for row in rows:
            layers = shape.num_layers if row.per_layer else 1
            first.append(first[-1] + layers * (shape.num_experts if row.per_expert else 1))
        return cls(shape=shape, rows=rows, first=tuple(first))

    def __len__(self) -> int:
        return self.first[-1]

    def name(self, number: int) -> str:
        """Hugging Face name of a tensor."""
        at = max(i for i, first in enumerate(self.first[:-1]) if first <= number)
        row, within = self.rows[at], number - self.first[at]
        if not row.per_expert:
            return row.hf.format(layer=within)
        layer, expert = divmod(within, self.shape.num_experts)
        return row.hf.format(layer=layer, expert=expert)

    def row_of(self, number: int) -> Row:
        """The table's row of a tensor."""
        return self.rows[max(i for i, first in enumerate(self.first[:-1]) if first <= number)]


@dataclass
class Side:
    """One mesh's parts: pieces [n, 8] (see `_FIELDS`) that all ranks of a part hold alike."""

    names: list[str] = field(default_factory=list)
    """Parameters by number. One name may stand for different experts on different ranks."""
    parts: list[NDArray[np.int32]] = field(default_factory=list)
    ranks: list[list[int]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """The number of a parameter."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def add(self, pieces: list[NDArray[np.int32]], ranks: Iterable[int]) -> None:
        """A part; nothing when it is empty."""
        if pieces:
            self.parts.append(np.concatenate(pieces))
            self.ranks.append(sorted(ranks))

    def of_rank(self, rank: int) -> NDArray[np.int32]:
        """All pieces of one rank."""
        mine = [p for p, ranks in zip(self.parts, self.ranks, strict=True) if rank in ranks]
        return np.concatenate(mine) if mine else np.zeros((0, 8), np.int32)

    def shapes(self, rank: int) -> dict[str, tuple[int, int]]:
        """[rows, columns] that the pieces of one rank span in each of its parameters."""
        pieces = self.of_rank(rank)
        sizes = np.zeros((len(self.names), 2), np.int64)
        _, param, r0, r1, c0, c1, row, col = pieces.T
        np.maximum.at(sizes[:, 0], param, row + r1 - r0)
        np.maximum.at(sizes[:, 1], param, col + c1 - c0)
        return {self.names[i]: (int(sizes[i, 0]), int(sizes[i, 1])) for i in np.unique(param)}


# ---- one tensor in one parameter ---------------------------------------------------------------


def local_rows(rows: int, unit: int, size: int) -> int:
    """Rows of a stacked tensor on one of `size` ranks; a unit is never cut."""
    return rows // size if rows // unit >= size else unit


def _stacked(place: Place, rows: int, columns: int, rank: int, size: int) -> list[list[int]]:
    local = local_rows(rows, place.unit, size)
    start = local * (rank * rows // local // size if local * size > rows else rank)
    above = sum(local_rows(other, place.unit, size) for other in place.before)
    return [[start, start + local, 0, columns, above, 0]]


def _grouped(
    place: Place, shape: ModelShape, rows: int, columns: int, rank: int, size: int
) -> list[list[int]]:
    d, groups = shape.head_dim, shape.num_kv_heads
    height = rows // groups
    above = sum(other // groups for other in place.before)
    step = (shape.num_heads // groups + 2) * d
    mine = range(rank * groups // size, (rank + 1) * groups // size)
    return [
        [g * height, (g + 1) * height, 0, columns, i * step + above, 0] for i, g in enumerate(mine)
    ]


def rectangles(
    row: Row, place: Place, shape: ModelShape, rank: int, size: int, padded_vocab: int
) -> list[list[int]]:
    """[r0, r1, c0, c1, row, col] of what tensor-parallel `rank` of `size` holds of a tensor, which
    `size` divides (`model.divisibility`)."""
    rows, columns = row.shape[0], prod(row.shape[1:])
    match place.split:
        case Split.NONE:
            return [[0, rows, 0, columns, 0, 0]]
        case Split.ROWS:
            return _stacked(place, rows, columns, rank, size)
        case Split.GROUPED:
            return _grouped(place, shape, rows, columns, rank, size)
        case Split.COLUMNS:
            width = columns // size
            return [[0, rows, rank * width, (rank + 1) * width, 0, 0]]
    height = padded_vocab // size
    start, end = min(rows, rank * height), min(rows, (rank + 1) * height)
    return [[start, end, 0, columns, 0, 0]] if end > start else []


# ---- tiles over layers and experts -------------------------------------------------------------


def _tile(
    base: list[list[int]], tensors: NDArray[np.int64], params: NDArray[np.int64], shift: object = 0
) -> NDArray[np.int32]:
    """`base` rectangles for each of `tensors`, in `params`, `shift` rows further down."""
    count, each = len(tensors), len(base)
    out = np.empty((count, each, 8), np.int32)
    out[:, :, 0] = tensors[:, None]
    out[:, :, 1] = params[:, None]
    out[:, :, 2:] = np.asarray(base, np.int32)[None]
    out[:, :, 6] += np.asarray(shift, np.int32).reshape(-1, 1)
    return out.reshape(-1, 8)


def _dense_tiles(
    side: Side,
    tensors: Tensors,
    layers: Sequence[int],
    places: Callable[[Row], Iterable[Place]],
    cut: Callable[[Row, Place], list[list[int]]],
) -> list[NDArray[np.int32]]:
    out = []
    for row, first in zip(tensors.rows, tensors.first, strict=False):
        if row.per_expert:
            continue
        over = list(layers) if row.per_layer else [0]
        for place in places(row):
            base = cut(row, place)
            if base and over:
                params = [side.number(place.name.format(layer=layer)) for layer in over]
                out.append(_tile(base, first + np.array(over), np.array(params)))
    return out


def _held_at_ends(mesh: TrainerMesh, shape: ModelShape, stage: int) -> set[str]:
    """Parameters outside of the layers that a stage holds."""
    names = set()
    last = stage == mesh.pipeline - 1
    if stage == 0:
        names.add("embedding.word_embeddings.weight")
    if last:
        names.add("decoder.final_layernorm.weight")
    if last and not (shape.tied and mesh.pipeline == 1):
        names.add("output_layer.weight")
    return names


def trainer_side(tensors: Tensors, mesh: TrainerMesh) -> Side:
    """What Megatron's ranks hold; ConfigError when the mesh does not divide the model."""
    side, shape = Side(), tensors.shape
    check_divisible(shape, mesh.cuts)
    padded = shape.trainer_vocab(mesh.tensor)
    dense: dict[tuple[int, int], list[int]] = {}
    experts: dict[tuple[int, int, int], list[int]] = {}
    for rank in mesh.ranks:
        dense.setdefault(mesh.dense(rank), []).append(rank)
        experts.setdefault(mesh.experts(rank), []).append(rank)
    for (stage, tensor), ranks in dense.items():
        ends = _held_at_ends(mesh, shape, stage)

        def places(row: Row, ends: set[str] = ends) -> list[Place]:
            return [p for p in row.trainer if row.per_layer or p.name in ends]

        def cut(row: Row, place: Place, tensor: int = tensor) -> list[list[int]]:
            return rectangles(row, place, shape, tensor, mesh.tensor, padded)

        side.add(
            _dense_tiles(side, tensors, mesh.layers(stage, shape.num_layers), places, cut), ranks
        )
    for (stage, tensor, expert), ranks in experts.items() if shape.num_experts else ():
        each = shape.num_experts // mesh.expert
        mine = np.arange(expert * each, (expert + 1) * each)
        layers = np.array(mesh.layers(stage, shape.num_layers))
        side.add(_trainer_experts(side, tensors, mesh, tensor, layers, mine), ranks)
    return side


def _trainer_experts(
    side: Side,
    tensors: Tensors,
    mesh: TrainerMesh,
    tensor: int,
    layers: NDArray[np.int64],
    experts: NDArray[np.int64],
) -> list[NDArray[np.int32]]:
    shape, out = tensors.shape, []
    for row, first in zip(tensors.rows, tensors.first, strict=False):
        if row.per_expert:
            place = row.trainer[0]
            base = rectangles(row, place, shape, tensor, mesh.expert_tensor, 0)
            params = [
                side.number(place.name.format(layer=layer, expert=local))
                for layer in layers
                for local in range(len(experts))
            ]
            numbers = first + (layers[:, None] * shape.num_experts + experts).reshape(-1)
            out.append(_tile(base, numbers, np.array(params)))
    return out


def rollout_side(tensors: Tensors, mesh: RolloutMesh) -> Side:
    """What vLLM's ranks hold, in the layout in which it loads; ConfigError when its tensor-parallel
    size does not divide the model."""
    side, shape = Side(), tensors.shape
    check_divisible(shape, mesh.cuts)
    layers = np.arange(shape.num_layers)
    for tensor in range(mesh.tensor):

        def cut(row: Row, place: Place, tensor: int = tensor) -> list[list[int]]:
            return rectangles(row, place, shape, tensor, mesh.tensor, shape.engine_vocab)

        pieces = _dense_tiles(side, tensors, layers.tolist(), lambda row: [row.rollout], cut)
        pieces += _rollout_experts(side, tensors, mesh, tensor, layers)
        side.add(pieces, [r for r in mesh.ranks if mesh.tensor_rank(r) == tensor])
    return side


def _rollout_experts(
    side: Side, tensors: Tensors, mesh: RolloutMesh, tensor: int, layers: NDArray[np.int64]
) -> list[NDArray[np.int32]]:
    """The engine stacks a layer's experts in one parameter."""
    shape, out = tensors.shape, []
    at, size = (0, 1) if mesh.expert else (tensor, mesh.tensor)
    experts = np.arange(shape.num_experts)
    if mesh.expert:
        experts = np.array_split(experts, mesh.tensor)[tensor]
    for row, first in zip(tensors.rows, tensors.first, strict=False):
        if row.per_expert and len(experts):
            base = rectangles(row, row.rollout, shape, at, size, 0)
            stacked = 2 if row.rollout.split is Split.ROWS else 1
            height = stacked * (base[0][1] - base[0][0])
            params = [side.number(row.rollout.name.format(layer=layer)) for layer in layers]
            numbers = first + (layers[:, None] * shape.num_experts + experts).reshape(-1)
            shift = np.tile(np.arange(len(experts)) * height, len(layers))
            out.append(_tile(base, numbers, np.repeat(params, len(experts)), shift))
    return out
