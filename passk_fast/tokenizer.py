"""Tokenizers: a character one for models made from scratch, and encoding that refuses silently
lost text. Also makes the folder of such a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from passk_fast.config import ShapeConfig
from passk_fast.errors import DataError

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


def character_tokenizer(alphabet: str) -> Any:
    """A `PreTrainedTokenizerFast` with one token a character of `alphabet` and four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [PAD, BOS, EOS, UNK, *sorted(set(alphabet))]
    model = models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=UNK)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def encode_checked(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without special tokens; DataError where a part would become unknown."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        lost = sorted({c for c in text if tokenizer.encode(c, add_special_tokens=False) == [unknown]})
        raise DataError(f"the tokenizer has no token for {lost} in the text {text[:60]!r}.")
    return ids


def make_tiny_model(shape: ShapeConfig, tokenizer: Any, seed: int, out: Path) -> None:
    """Write a Hugging Face folder with a random model of `shape`, the same for the same seed."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    kinds = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    make_config, make_model = kinds[shape.architecture]
    config = make_config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(config).float()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, is_main_process=True)
    tokenizer.save_pretrained(out)
