"""Whether a model folder holds the tensors of its config.json and no others, by file headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import read_json
from passk_fast.model.shape import ModelShape
from passk_fast.weights.layout import table

INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16")
_MOST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


def check_tensors(folder: Path, shape: ModelShape, source: str = "model.path") -> None:
    """Compare names, shapes and types with what the model needs; weights are not read.

    Two kinds of tensors may be there without being read, as transformers and vLLM do not read them
    either: rotary frequencies, which are computed, and the copy of a tied output layer.

    Raises:
        ConfigError: begins with `source`; a tensor is missing, unknown (a quantisation's scale, a
            bias that the model does not have), of another shape or of an integer or 8-bit type, or
            a file is damaged.
    """
    found, expected = dict(_tensors(folder, source)), dict(_expected(shape))
    for name in sorted(expected.keys() - found.keys()):
        raise ConfigError(f"{source}: {folder} has no tensor {name!r}.")
    unread = {"lm_head.weight": expected["model.embed_tokens.weight"]} if shape.tied else {}
    for name, (kind, size) in sorted(found.items()):
        wanted = expected.get(name) or unread.get(name)
        if wanted is None and name.endswith("rotary_emb.inv_freq"):
            continue
        if wanted is None:
            raise ConfigError(
                f"{source}: {folder} holds a tensor {name!r} that the family "
                f"{shape.family.name!r} with this config.json does not use: the model would be "
                "another one without it."
            )
        if size != wanted:
            raise ConfigError(
                f"{source}: tensor {name!r} has shape {list(size)}, but config.json asks for "
                f"{list(wanted)}."
            )
        if kind not in _DTYPES:
            raise ConfigError(
                f"{source}: tensor {name!r} is of type {kind}; supported: {', '.join(_DTYPES)}. "
                "Train from a folder that is not quantised."
            )


def _expected(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the model."""
    for row in table(shape):
        for layer in range(shape.num_layers if row.per_layer else 1):
            for expert in range(shape.num_experts if row.per_expert else 1):
                yield row.hf.format(layer=layer, expert=expert), row.shape


def _tensors(folder: Path, source: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """(name, (type, shape)) of the tensors of the files that the index names, or of all files."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, source).get("weight_map")
        if not isinstance(index, dict):
            raise ConfigError(f"{source}: {folder / INDEX} has no weight_map.")
        files = sorted({folder / str(name) for name in index.values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{source}: {folder} holds no *.safetensors file.")
    for file in files:
        header = _header(file, source)
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, (str(entry["dtype"]), tuple(entry["shape"]))


def _header(file: Path, source: str) -> dict[str, dict[str, list[int]]]:
    """The JSON at the start of a safetensors file, once the file is as long as it says."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MOST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, dict[str, list[int]]] = json.loads(stream.read(size))
        ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
        if file.stat().st_size != 8 + size + max(ends, default=0):
            raise ValueError("it is shorter or longer than its header says")
    except OSError as error:
        raise ConfigError(f"{source}: {file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{source}: {file} is not a safetensors file: {error}.") from None
    return header
