"""Model folders without weights: a safetensors header that is right, and a hole for the data."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.weights.layout import table


def write_empty_weights(folder: Path) -> None:
    """model.safetensors for the folder's config.json; without a tensor where that is refused."""
    try:
        shape = ModelShape.read(folder)
    except ConfigError:
        write_safetensors(folder / "model.safetensors", {})
        return
    sizes = {
        row.hf.format(layer=layer, expert=expert): row.shape
        for row in table(shape)
        for layer in range(shape.num_layers if row.per_layer else 1)
        for expert in range(shape.num_experts if row.per_expert else 1)
    }
    write_safetensors(folder / "model.safetensors", sizes)


def write_safetensors(
    file: Path, sizes: dict[str, tuple[int, ...]], dtypes: dict[str, str] | None = None
) -> None:
    """A file of tensors of zeros that takes no space; bfloat16 unless `dtypes` says otherwise."""
    header, end = {}, 0
    for name, size in sizes.items():
        dtype = (dtypes or {}).get(name, "BF16")
        width = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8}[dtype]
        start, end = end, end + width * math.prod(size)
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
