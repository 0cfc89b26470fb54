"""Trainer to engine, shard to shard: the engine samples as a fresh one on the new weights would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from passk_fast.model.tokenizer import character_tokenizer
from tests.ranks import RankPool
from tests.run.sync_workers import largest_difference

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

W = "tests.run.sync_workers:"
PROMPTS = [[1 + (7 * i + 3 * j) % 38 for j in range(40)] for i in range(3)]
"""Longer than a block of keys, so that a prefix cached before a sync would be found after it."""


def make_folders(kind: str, root: Path, *, tied: bool = False) -> tuple[str, str]:
    """Two random models of a kind, biases and norms included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "eos_token_id": 0,
    }
    if kind == "qwen3_moe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    if kind == "mixtral":
        sizes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.3 if parameter.ndim == 1 else 0.1
                parameter.add_(scale * torch.randn_like(parameter))
        out = root / f"{kind}-{seed}-{tied}"
        model.save_pretrained(out)
        character_tokenizer("abcdefgh").save_pretrained(out)
        folders.append(str(out))
    return folders[0], folders[1]


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    """A world of two."""
    with RankPool(2) as pool:
        yield pool


CASES = [
    pytest.param("qwen2", False, {"tensor": 2}, 2, marks=pytest.mark.sample, id="qwen2-tp2-tp2"),
    pytest.param("qwen3", True, {"pipeline": 2}, 2, id="qwen3-tied-pp2-tp2"),
    pytest.param("llama", False, {"tensor": 2}, 1, id="llama-tp2-dp2"),
    pytest.param("gemma2", True, {"tensor": 2}, 2, id="gemma2-tied-tp2-tp2"),
    pytest.param(
        "qwen3_moe", False, {"expert": 2}, 2, marks=pytest.mark.sample, id="qwen3_moe-ep2-tp2"
    ),
    pytest.param("mixtral", False, {"tensor": 2, "expert": 2}, 1, id="mixtral-tp2-ep2-dp2"),
]


@pytest.mark.parametrize(("kind", "tied", "parallel", "tensor"), CASES)
def test_the_engine_samples_from_the_trainers_weights(
    two: RankPool, tmp_path: Path, kind: str, tied: bool, parallel: dict[str, Any], tensor: int
) -> None:
    first, second = make_folders(kind, tmp_path, tied=tied)
    two.run(W + "start", second, parallel, tensor)
    expected = two.run(W + "sample", PROMPTS)
    two.run(W + "start", first, parallel, tensor, sync_mib=1)
    before = two.run(W + "sample", PROMPTS)
    two.run(W + "sync", second)
    after = two.run(W + "sample", PROMPTS)
    two.run(W + "sync", first)
    again = two.run(W + "sample", PROMPTS)
    for rank in range(2):
        assert largest_difference(after[rank], expected[rank]) <= 1e-5
        assert largest_difference(again[rank], before[rank]) <= 1e-5
        assert largest_difference(after[rank], before[rank]) > 1e-3


def test_a_layer_that_is_packed_wrongly_is_named(two: RankPool, tmp_path: Path) -> None:
    first, second = make_folders("qwen3", tmp_path)
    two.run(W + "start", first, {}, 2)
    two.run(W + "sync", second)
    for text in two.run(W + "packs_wrongly"):
        assert "model.layers.0.self_attn.o_proj: the engine's packed weight" in text


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_the_engine_takes_experts_from_shards(two: RankPool, tmp_path: Path, kind: str) -> None:
    """Expert-parallel shards into an engine that cuts every expert."""
    first, second = make_folders(kind, tmp_path)
    two.run(W + "start_engine_alone", second, 2)
    expected = two.run(W + "sample", PROMPTS)
    two.run(W + "start_engine_alone", first, 2)
    before = two.run(W + "sample", PROMPTS)
    two.run(W + "sync_from_shards", second, {"expert": 2}, 2)
    after = two.run(W + "sample", PROMPTS)
    for rank in range(2):
        assert largest_difference(after[rank], expected[rank]) <= 1e-5
        assert largest_difference(after[rank], before[rank]) > 1e-3
