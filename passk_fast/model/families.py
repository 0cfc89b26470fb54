"""The model families: everything in which one differs from the next, one table entry each.

Parsing of config.json, the weight layout, the actor, the run checks, the plan and the engine read
this table; nothing else asks for a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How a family of mixtures of experts names its sizes and its weights."""

    width_field: str
    """Field of config.json with the width of one expert."""
    normalized_field: str = ""
    """Field of config.json that says whether the weights of a token's experts sum to 1; empty where
    they always do."""
    router: str
    """The router's module, under model.layers.N."""
    experts: str
    """The list of experts, under model.layers.N."""
    expert_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    engine_experts: str
    """vLLM's module that stacks all experts, under model.layers.N."""


Activation = Literal["silu", "gelu_pytorch_tanh"]
"""Activations of a gated MLP, by transformers' names."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A decoder with grouped-query attention, RMS norms and gated MLPs or mixtures of them."""

    name: str
    """`model_type` in config.json."""
    architecture: str
    """The transformers class, the first of `architectures` in config.json."""
    qkv_bias: bool = False
    """Query, key and value projections have biases."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    mixture: Mixture | None = None
    """None for a dense model."""
    output_norms: bool = False
    """The outputs of attention and MLP are normalised before they are added (Gemma 2)."""
    centered_norms: bool = False
    """Norms multiply by 1 + weight."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by hidden_size ** 0.5, rounded to the weights' type."""
    soft_caps: bool = False
    """config.json has attn_logit_softcapping, final_logit_softcapping, query_pre_attn_scalar."""
    alternating_windows: bool = False
    """Every other layer, the first included, has a sliding window, unless `layer_types` differs."""
    activation: Activation = "silu"
    """Of the MLP's gate, the only one that is known for the family."""
    activation_field: str = "hidden_act"
    """Field of config.json that names the activation."""
    defaults: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What transformers takes where config.json leaves a field out."""


_DEFAULTS: dict[str, object] = {
    "head_dim": None,  # hidden size / heads
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="qwen2",
            architecture="Qwen2ForCausalLM",
            qkv_bias=True,
            defaults=_DEFAULTS,
        ),
        Family(
            name="qwen3",
            architecture="Qwen3ForCausalLM",
            qk_norm=True,
            defaults={**_DEFAULTS, "head_dim": 128},
        ),
        Family(
            name="llama",
            architecture="LlamaForCausalLM",
            defaults={**_DEFAULTS, "num_key_value_heads": None},
        ),
        Family(
            name="gemma2",
            architecture="Gemma2ForCausalLM",
            output_norms=True,
            centered_norms=True,
            scaled_embedding=True,
            soft_caps=True,
            alternating_windows=True,
            activation="gelu_pytorch_tanh",
            activation_field="hidden_activation",
            defaults={
                **_DEFAULTS,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "max_position_embeddings": 8192,
                "tie_word_embeddings": True,
                "query_pre_attn_scalar": 256,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "hidden_activation": "gelu_pytorch_tanh",
                "sliding_window": 4096,
                "layer_types": None,
            },
        ),
        Family(
            name="qwen3_moe",
            architecture="Qwen3MoeForCausalLM",
            qk_norm=True,
            mixture=Mixture(
                width_field="moe_intermediate_size",
                normalized_field="norm_topk_prob",
                router="mlp.gate",
                experts="mlp.experts",
                engine_experts="mlp.experts.routed_experts",
            ),
            defaults={**_DEFAULTS, "norm_topk_prob": False},
        ),
        Family(
            name="mixtral",
            architecture="MixtralForCausalLM",
            mixture=Mixture(
                width_field="intermediate_size",
                router="block_sparse_moe.gate",
                experts="block_sparse_moe.experts",
                expert_names=("w1", "w3", "w2"),
                engine_experts="block_sparse_moe.experts.routed_experts",
            ),
            defaults={**_DEFAULTS, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        ),
    )
}
"""By `model_type`."""
