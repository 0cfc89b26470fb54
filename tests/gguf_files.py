"""GGUF files for tests: written by the package gguf, from models of transformers, as llama.cpp's
converter lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
HEADS, KV_HEADS, HEAD_DIM = 2, 1, 32
Values = Mapping[str, object]


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """(tokens, their types, merges): control tokens, a user-defined one, bytes, and some words."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    kinds = [3, 3, 3, 4]
    tokens += sorted(ByteLevel.alphabet())
    merges = []
    # After "1 2" a splitting that keeps digits together would join "12".
    for merge in ("h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "12 3", "Ġ Ġ", "Ċ Ċ", "' s"):
        merges.append(merge)
        tokens.append(merge.replace(" ", ""))
    return tokens, kinds + [1] * (len(tokens) - len(kinds)), merges


def tiny_model(kind: str, *, tied: bool = True) -> PreTrainedModel:
    """A random model of transformers with as many tokens as `vocabulary`."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(vocabulary()[0]),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, mean=0.05, std=0.2)
    return model.eval()


def _pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows from halves into llama.cpp's pairs of rotary channels."""
    rows = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def _name(name: str) -> str:
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ):
        name = name.replace(ours, theirs)
    return name


def write_gguf(
    out: Path,
    model: PreTrainedModel,
    *,
    pre: str = "smollm",
    quantised: gguf.GGMLQuantizationType | None = None,
    fields: Values | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    left_out: tuple[str, ...] = (),
) -> Path:
    """Write `model` with the small vocabulary; `fields` (None: left out) and `extra` tensors go on
    top, tensors of `left_out` stay away. Returns `out`."""
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(out, kind)
    tokens, kinds, merges = vocabulary()
    values: dict[str, object] = {
        f"{kind}.block_count": 2,
        f"{kind}.context_length": 256,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": HEADS,
        f"{kind}.attention.head_count_kv": KV_HEADS,
        f"{kind}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
        **(fields or {}),
    }
    for name, value in values.items():
        _add(writer, name, value)
    for name, weight in model.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or name in left_out:
            continue
        array = weight.numpy()
        if kind == "llama" and "q_proj" in name:
            array = _pairs(array, HEADS)
        elif kind == "llama" and "k_proj" in name:
            array = _pairs(array, KV_HEADS)
        if quantised is not None and array.ndim == 2:
            packed = gguf.quantize(array, quantised)
            writer.add_tensor(_name(name), packed, raw_dtype=quantised)
        else:
            writer.add_tensor(_name(name), array)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: gguf.GGUFWriter, name: str, value: object) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case list():
            writer.add_array(name, value)
        case _:
            raise AssertionError(f"{name}: {type(value)}")
