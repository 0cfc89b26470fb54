"""The character tokenizer and the random models of a given shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from passk_fast.config import ShapeConfig
from passk_fast.errors import ConfigError, DataError
from passk_fast.model.tokenizer import character_tokenizer, encode_checked, make_tiny_model

ALPHABET = "ab #.\n\t<>é"


def test_one_token_a_character_and_back(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    text = "a b##.\n\t\n <é> "
    ids = encode_checked(tokenizer, text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(ALPHABET) + 3
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text, add_special_tokens=False) == ids
    assert again.decode(ids) == text


def test_special_tokens_vanish_on_decoding() -> None:
    tokenizer = character_tokenizer("ba")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode([3, 4, 1], skip_special_tokens=True) == "ab"


def test_unknown_characters_are_errors() -> None:
    tokenizer = character_tokenizer("abc")
    with pytest.raises(DataError, match=r"Character 'Q' at position 3 of the text 'abcQa' is not"):
        encode_checked(tokenizer, "abcQa")
    with pytest.raises(ConfigError, match="at least one character"):
        character_tokenizer("")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_model_has_the_shape_and_follows_its_seed(tmp_path: Path, architecture: str) -> None:
    shape = ShapeConfig(
        architecture=architecture,  # type: ignore[arg-type]
        num_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        tie_embeddings=architecture != "llama",
        max_positions=64,
    )
    tokenizer = character_tokenizer(ALPHABET)
    state = torch.get_rng_state()
    folders = [
        make_tiny_model(shape, tokenizer, seed, tmp_path / str(i))
        for i, seed in enumerate([3, 3, 4])
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, second, third = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    assert first["model.embed_tokens.weight"].shape == (16, 32)
    assert ("lm_head.weight" in first) == (architecture == "llama")
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    assert model.config.model_type == architecture
    assert model.generation_config.eos_token_id == 1
    assert model.config.max_position_embeddings == 64
    assert json.loads((folders[0] / "config.json").read_text())["num_key_value_heads"] == 2


def test_qwen2_refuses_a_free_head_dim(tmp_path: Path) -> None:
    shape = ShapeConfig(architecture="qwen2", hidden_size=128, num_heads=4, head_dim=64)
    with pytest.raises(ConfigError, match="num_heads x head_dim = hidden_size"):
        make_tiny_model(shape, character_tokenizer("ab"), 0, tmp_path)
