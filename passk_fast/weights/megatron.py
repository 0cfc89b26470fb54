"""Weights of this rank's Megatron chunks from and to Hugging Face names, by the layout table.

`load` reads the rectangles that a rank holds from a model folder. `full_tensors` walks the model
layer by layer and yields full Hugging Face tensors, which an export writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.weights.exchange import Exchange, check_targets
from passk_fast.weights.hf import HFReader
from passk_fast.weights.layout import Spec
from passk_fast.weights.mesh import TrainerMesh
from passk_fast.weights.placement import Side, Tensors, trainer_side
from passk_fast.weights.reshard import plan_reshard

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Layout:
    """The model's tensors and where the trainer's ranks hold them."""

    tensors: Tensors
    side: Side
    rank: int

    @classmethod
    def of(cls, shape: ModelShape, mesh: TrainerMesh, rank: int, spec: Spec = Spec.LOCAL) -> Layout:
        """For this `rank`; ConfigError when the model does not divide over the mesh."""
        tensors = Tensors.of(shape, spec)
        return cls(tensors, trainer_side(tensors, mesh), rank)


def unwrapped(chunk: nn.Module) -> nn.Module:
    """The GPTModel inside of Megatron's wrappers."""
    while isinstance(inner := getattr(chunk, "module", None), nn.Module):
        chunk = inner
    return chunk


def layers_of(chunk: nn.Module) -> list[nn.Module]:
    """The transformer layers of a chunk, wrapped or not, in order."""
    return list(unwrapped(chunk).get_submodule("decoder.layers").children())


def layer_index(layer: nn.Module) -> int:
    """A layer's place in the whole model, from 0."""
    number: int = getattr(layer, "layer_number")  # noqa: B009  nn.Module hides its type
    return number - 1


def named_parameters(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters of this rank by Megatron name with global layer indices."""
    named = {}
    for chunk in chunks:
        layers = [layer_index(layer) for layer in layers_of(chunk)]
        for name, parameter in unwrapped(chunk).named_parameters():
            match = _LAYER.match(name)
            if match:
                name = f"decoder.layers.{layers[int(match[1])]}.{name[match.end() :]}"
            named[name] = parameter
    return named


@torch.no_grad()
def load(chunks: Sequence[nn.Module], reader: HFReader, layout: Layout) -> None:
    """Fill this rank's parameters from a model folder; rows of padding become zero.

    ConfigError names a tensor that is missing or does not have the configuration's shape, and a
    parameter that the table does not know.
    """
    named, side = named_parameters(chunks), layout.side
    check_targets(side, layout.rank, named)
    for parameter in named.values():
        parameter.zero_()
    checked: set[int] = set()
    for tensor, param, r0, r1, c0, c1, row, col in side.of_rank(layout.rank).tolist():
        name = layout.tensors.name(tensor)
        if tensor not in checked:
            _check_shape(reader, name, layout.tensors.row_of(tensor).shape)
            checked.add(tensor)
        parameter = named[side.names[param]]
        matrix = parameter.view(-1, parameter.shape[-1] if parameter.ndim > 1 else 1)
        part = reader.read_part(name, r0, r1, c0, c1)
        matrix[row : row + r1 - r0, col : col + c1 - c0].copy_(part)


def _check_shape(reader: HFReader, name: str, expected: tuple[int, ...]) -> None:
    found = reader.shape(name)
    if found != expected:
        raise ConfigError(
            f"model.path: {name} has shape {found}; config.json says that it is {expected}."
        )


def full_tensors(
    chunks: Sequence[nn.Module], layout: Layout, ranks: Iterable[int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, full tensor) on `ranks` (default: all), layer by layer.

    A collective of the trainer's ranks: every one must exhaust it. Other ranks get nothing. A tied
    output layer is yielded once, as the embedding.
    """
    named, tensors = named_parameters(chunks), layout.tensors
    like = next(iter(named.values()))
    wanted = sorted({r for part in layout.side.ranks for r in part} if ranks is None else ranks)
    for numbers in _by_layer(tensors):
        source, target = _only(layout.side, numbers), _whole(tensors, numbers, wanted)
        plan = plan_reshard(
            tensors, source, target, element_bytes=like.dtype.itemsize, rank=layout.rank
        )
        exchange = Exchange(plan, tensors, rank=layout.rank, dtype=like.dtype, device=like.device)
        out = {}
        if layout.rank in wanted:
            for number in numbers:
                shape = tensors.row_of(number).shape
                out[tensors.name(number)] = torch.empty(shape, dtype=like.dtype, device=like.device)
        exchange.run(named, out)
        yield from out.items()


def _by_layer(tensors: Tensors) -> Iterator[list[int]]:
    """Numbers of all tensors: those outside of layers, then layer by layer."""
    top: list[int] = []
    layers: list[list[int]] = [[] for _ in range(tensors.shape.num_layers)]
    for row, first in zip(tensors.rows, tensors.first, strict=False):
        each = tensors.shape.num_experts if row.per_expert else 1
        if not row.per_layer:
            top.append(first)
            continue
        for layer, numbers in enumerate(layers):
            numbers.extend(range(first + layer * each, first + (layer + 1) * each))
    yield top
    yield from layers


def _only(side: Side, numbers: list[int]) -> Side:
    """The pieces of some tensors."""
    parts = [part[np.isin(part[:, 0], numbers)] for part in side.parts]
    return Side(side.names, parts, side.ranks)


def _whole(tensors: Tensors, numbers: list[int], ranks: list[int]) -> Side:
    """A side on which `ranks` hold tensors whole under their Hugging Face names."""
    side = Side()
    pieces = []
    for number in numbers:
        rows, *rest = tensors.row_of(number).shape
        columns = rest[0] if rest else 1
        pieces.append([number, side.number(tensors.name(number)), 0, rows, 0, columns, 0, 0])
    side.add([np.array(pieces, np.int32)], ranks)
    return side
