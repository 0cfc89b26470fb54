"""A tiny Qwen3-MoE folder, and the experts that transformers' own routers choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from passk_fast.model.tokenizer import character_tokenizer

ALPHABET = "abcdefgh\n "
EXPERTS, TOP_K, LAYERS = 8, 2, 3


def make_moe_folder(folder: Path, seed: int) -> str:
    """A random model whose logits have a standard deviation near 1.6."""
    tokenizer = character_tokenizer(ALPHABET)
    config = Qwen3MoeConfig(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(std=0.2 if "lm_head" in name else 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class ReferenceRouter:
    """transformers' model of a folder, in float64, and what its routers choose."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, experts_implementation="eager"
        )

    def experts(self, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Sets of experts, sorted, int64 [tokens, layers, K]; and the gap [tokens, layers] between
        the logits of the last that is in and the first that is out: how safe the choice is."""
        logits: list[torch.Tensor] = []

        def keep(module: object, inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            logits.append(outputs[0])

        gates = [layer.mlp.gate for layer in self.model.model.layers]
        hooks = [gate.register_forward_hook(keep) for gate in gates]
        with torch.no_grad():
            self.model(torch.tensor([list(token_ids)]))
        for hook in hooks:
            hook.remove()
        k = self.model.config.num_experts_per_tok
        top = torch.stack(logits, dim=1).topk(k + 1, dim=-1)
        gap = top.values[..., k - 1] - top.values[..., k]
        return top.indices[..., :k].sort(dim=-1).values.numpy(), gap.numpy()
