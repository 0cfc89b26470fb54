"""The tensors of a GGUF file under their Hugging Face names, with rotary channels in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from passk_fast.errors import ConfigError
from passk_fast.model.gguf.config import EMBEDDING, OUTPUT, architecture
from passk_fast.model.gguf.file import GgufFile
from passk_fast.model.shape import ModelShape
from passk_fast.weights.placement import Tensors

_WHOLE = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def tensors(file: GgufFile, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, float32 tensor) of every tensor, one in memory at a time.

    Raises:
        ConfigError: a tensor that the model of `shape` does not have, lacks, or has in another
            shape.
    """
    names = {name: _renamed(file, name) for name in file.tensor_names()}
    table = Tensors.of(shape)
    wanted = {table.name(i): table.row_of(i).shape for i in range(len(table))}
    for name, renamed in names.items():
        if renamed not in wanted:
            raise ConfigError(
                f"{file.path}: tensor {name} has no place in a {shape.family.name} model, and "
                "leaving it out could change what it computes. Take its Hugging Face folder."
            )
        if file.tensor_shape(name) != wanted[renamed]:
            raise ConfigError(
                f"{file.path}: tensor {name} has shape {file.tensor_shape(name)}; it must have "
                f"{wanted[renamed]}, by the sizes in the file."
            )
    missing = sorted(wanted.keys() - names.values())
    if missing:
        raise ConfigError(f"{file.path}: the tensor that becomes {missing[0]} is missing.")
    permuted = architecture(file).permuted
    for name, renamed in names.items():
        values = file.tensor(name)
        if permuted and ".attn_q." in name:
            values = halves_of_heads(values, shape.num_heads)
        elif permuted and ".attn_k." in name:
            values = halves_of_heads(values, shape.num_kv_heads)
        yield (
            renamed,
            torch.from_numpy(np.array(values, order="C")),
        )  # the file's pages are read-only


def halves_of_heads(values: Float32[np.ndarray, " ..."], heads: int) -> Float32[np.ndarray, " ..."]:
    """Rows from llama.cpp's order of rotary channels (pairs side by side) into halves.

    Example: the rows 0 1 2 3 of one head become 0 2 1 3.
    """
    rows = values.reshape(heads, -1, 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def _renamed(file: GgufFile, name: str) -> str:
    found = _LAYER.fullmatch(name)
    if found and found[2] in _OF_LAYER:
        return f"model.layers.{found[1]}.{_OF_LAYER[found[2]]}.{found[3]}"
    if name in _WHOLE:
        return _WHOLE[name]
    raise ConfigError(
        f"{file.path}: tensor {name} is not known here, and leaving it out could change what the "
        "model computes. Take the model's Hugging Face folder instead."
    )
