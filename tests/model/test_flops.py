"""FLOP counts against what torch counts in a real forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from passk_fast.model.flops import ModelFlops, Work
from passk_fast.model.shape import ModelShape


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("qwen3", {"head_dim": 16}),
        ("llama", {}),
    ],
)
def test_matrix_products_are_those_that_torch_counts(kind: str, extra: dict[str, int]) -> None:
    hf = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        **extra,
    )
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="eager")
    length = 20
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    flops = ModelFlops.of(ModelShape.parse(hf.to_dict()))
    # Eager attention multiplies every query with every key, causal or not.
    whole = Work(tokens=length, scored=length, pairs=length * length)
    assert counter.get_total_flops() == flops.forward(whole)


def test_only_the_experts_of_a_token_count() -> None:
    hf = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=32,
        moe_intermediate_size=8,
        num_experts=16,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=50,
    )
    attention = 32 * 16 * (2 * 2 + 2 * 2)
    assert (
        ModelFlops.of(ModelShape.parse(hf.to_dict())).layer_weights
        == attention + 3 * 32 * 8 * 2 + 32 * 16
    )


def test_sharing_a_prompt_saves_its_tokens_and_no_attention_of_responses() -> None:
    alone = sum((Work.of_sequence(100, r) for r in (5, 7)), Work())
    shared = Work.of_shared(100, [5, 7])
    assert alone == Work(212, 12, 105 * 106 // 2 + 107 * 108 // 2)
    assert shared.tokens == 99 + 12
    assert shared.scored == 12
    # The first response's view of one prompt, without the sequence's last token.
    one = Work.of_shared(100, [5])
    assert one.pairs == 104 * 105 // 2
