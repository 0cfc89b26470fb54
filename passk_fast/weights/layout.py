"""One layout table for dense Qwen2/2.5, Qwen3 and Llama: where each weight lives on each side.

A Megatron parameter holds one to three Hugging Face tensors, split over tensor-parallel ranks in
one of the ways of `Split`. Reading, writing and handing weights to vLLM are readers of this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Split(StrEnum):
    """How a full tensor is divided over tensor-parallel ranks."""

    NONE = "none"
    """Every rank holds all of it."""
    ROWS = "rows"
    """Dimension 0 (column-parallel linear)."""
    COLUMNS = "columns"
    """Dimension 1 (row-parallel linear)."""
    VOCAB = "vocab"
    """Dimension 0 after padding the vocabulary with zero rows."""
    QKV = "qkv"
    """Query, key and value interleaved by key-value head, then dimension 0."""
    GATE_UP = "gate_up"
    """Each rank holds its rows of gate, then its rows of up."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that the table needs."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    padded_vocab: int
    tied: bool

    @classmethod
    def from_hf(cls, hf: Any, padded_vocab: int) -> ModelShape:
        """From a transformers config and the padded vocabulary of the mesh."""
        return cls(
            num_heads=hf.num_attention_heads,
            num_kv_heads=hf.num_key_value_heads,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
            vocab=hf.vocab_size,
            padded_vocab=padded_vocab,
            tied=bool(hf.tie_word_embeddings),
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One Megatron parameter: the Hugging Face tensors in it and how it is split."""

    hf_names: tuple[str, ...]
    split: Split


_LAYER = {
    "self_attention.linear_qkv.weight": (
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        Split.QKV,
    ),
    "self_attention.linear_qkv.bias": (
        ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        Split.QKV,
    ),
    "self_attention.linear_proj.weight": (("self_attn.o_proj.weight",), Split.COLUMNS),
    "self_attention.q_layernorm.weight": (("self_attn.q_norm.weight",), Split.NONE),
    "self_attention.k_layernorm.weight": (("self_attn.k_norm.weight",), Split.NONE),
    "mlp.linear_fc1.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), Split.GATE_UP),
    "mlp.linear_fc2.weight": (("mlp.down_proj.weight",), Split.COLUMNS),
    # Norms stand alone in the local spec and inside the next linear layer in Transformer Engine's.
    "input_layernorm.weight": (("input_layernorm.weight",), Split.NONE),
    "pre_mlp_layernorm.weight": (("post_attention_layernorm.weight",), Split.NONE),
    "self_attention.linear_qkv.layer_norm_weight": (("input_layernorm.weight",), Split.NONE),
    "mlp.linear_fc1.layer_norm_weight": (("post_attention_layernorm.weight",), Split.NONE),
}

_TOP = {
    "embedding.word_embeddings.weight": (("model.embed_tokens.weight",), Split.VOCAB),
    "decoder.final_layernorm.weight": (("model.norm.weight",), Split.NONE),
    "output_layer.weight": (("lm_head.weight",), Split.VOCAB),
}

_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def entry(global_name: str, shape: ModelShape) -> Entry:
    """The table's row for a Megatron name with the *global* layer index; KeyError if unknown."""
    match = _LAYER_NAME.fullmatch(global_name)
    if match:
        names, split = _LAYER[match[2]]
        prefix = f"model.layers.{match[1]}."
        return Entry(hf_names=tuple(prefix + name for name in names), split=split)
    names, split = _TOP[global_name]
    if global_name == "output_layer.weight" and shape.tied:
        names = ("model.embed_tokens.weight",)
    return Entry(hf_names=names, split=split)


def _merge_qkv(q: Tensor, k: Tensor, v: Tensor, shape: ModelShape) -> Tensor:
    """[heads*d, ...] and twice [kv*d, ...] -> [kv*(heads/kv + 2)*d, ...], grouped by kv head."""
    rest, groups, d = q.shape[1:], shape.num_kv_heads, shape.head_dim
    parts = [x.reshape(groups, -1, d, *rest) for x in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def _split_qkv(merged: Tensor, shape: ModelShape) -> list[Tensor]:
    rest, groups, d = merged.shape[1:], shape.num_kv_heads, shape.head_dim
    grouped = merged.reshape(groups, -1, d, *rest)
    per_group = shape.num_heads // groups
    parts = grouped.split((per_group, 1, 1), dim=1)
    return [part.reshape(-1, *rest) for part in parts]


def _pad_vocab(x: Tensor, shape: ModelShape) -> Tensor:
    missing = shape.padded_vocab - x.shape[0]
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


def to_shard(
    split: Split, tensors: list[Tensor], shape: ModelShape, rank: int, size: int
) -> Tensor:
    """The part of the Hugging Face `tensors` that tensor-parallel `rank` of `size` holds."""
    if split is Split.QKV:
        full = _merge_qkv(tensors[0], tensors[1], tensors[2], shape)
        return full.chunk(size, dim=0)[rank]
    if split is Split.GATE_UP:
        return torch.cat([x.chunk(size, dim=0)[rank] for x in tensors], dim=0)
    full = _pad_vocab(tensors[0], shape) if split is Split.VOCAB else tensors[0]
    if split is Split.NONE:
        return full
    return full.chunk(size, dim=1 if split is Split.COLUMNS else 0)[rank]


def from_shards(split: Split, shards: list[Tensor], shape: ModelShape) -> list[Tensor]:
    """The inverse of `to_shard`: full tensors from all ranks' shards, in rank order."""
    if split is Split.NONE:
        return [shards[0]]
    if split is Split.GATE_UP:
        halves = [shard.chunk(2, dim=0) for shard in shards]
        return [torch.cat([half[i] for half in halves], dim=0) for i in (0, 1)]
    full = torch.cat(shards, dim=1 if split is Split.COLUMNS else 0)
    if split is Split.QKV:
        return _split_qkv(full, shape)
    return [full[: shape.vocab]] if split is Split.VOCAB else [full]
