"""The model families: everything in which one differs from the next, one table entry each.

Parsing of config.json, the weight layout, the actor, the run checks, the plan and the engine read
this table; nothing else asks for a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from passk_fast.model.fields import Only, Rule, Use, rules


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
    """Query, key and value projections have biases whatever config.json says."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    fixed_head_dim: bool = False
    """vLLM takes hidden size / heads channels per head, whatever config.json says."""
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
    activation: Activation = "silu"
    """Of the MLP's gate, the only one that is known for the family."""
    activation_field: str = "hidden_act"
    """Field of config.json that names the activation."""
    defaults: Mapping[str, object] = field(default_factory=dict, hash=False, repr=False)
    """What transformers takes where config.json leaves a field out."""
    fields: Mapping[str, Rule] = field(default_factory=dict, hash=False, repr=False)
    """How each field of config.json is treated; one that is not here is refused."""
    window: Literal["never", "given", "switched", "by layer", "alternating"] = "never"
    """Where `sliding_window` holds: never; in all layers where it is given; only with
    `use_sliding_window`; of that only in the layers that `layer_types` or `max_window_layers` name;
    in every other layer, the first included, unless `layer_types` differs."""


_DEFAULTS: dict[str, object] = {
    "head_dim": None,  # hidden size / heads
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_SWITCHED: dict[str, object] = {"use_sliding_window": False, "sliding_window": 4096}
_BY_LAYER: dict[str, object] = {**_SWITCHED, "max_window_layers": 28, "layer_types": None}

_ENGINE = "vLLM's model of this family has"
_NO_BIAS = "Remove the biases, or train the model as another family that has them"

_COMMON: dict[str, Rule] = {
    **rules(
        Use.COMPUTED,
        "architectures",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
    ),
    **rules(
        Use.HARMLESS,
        "_attn_implementation_autoset",
        "_name_or_path",
        "bos_token_id",
        "chunk_size_feed_forward",  # of encoders
        "dtype",  # model.dtype decides
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    ),
    "attention_dropout": Only((0, None), "training here has no dropout", "Set it to 0"),
    "is_encoder_decoder": Only((False,), "only decoders can be trained here"),
    "is_causal": Only((True, None), "only causal attention is computed"),
    "partial_rotary_factor": Only((1, None), "only the rotation of whole heads is computed"),
    "quantization_config": Only(
        (None,), "quantised weights cannot be trained", "Take the folder with the original weights"
    ),
    "attention_bias": Only((False, None), f"{_ENGINE} no such bias", _NO_BIAS),
    "mlp_bias": Only((False, None), f"{_ENGINE} no such bias", _NO_BIAS),
    "use_mrope": Only((False, None), "only text models can be trained here"),
}
_NEVER_A_WINDOW: dict[str, Rule] = {
    name: Only(
        values,
        "transformers computes full attention for this family and vLLM a window",
        "Set it to null, or train the model as 'mistral'",
    )
    for name, values in {
        "sliding_window": (None,),
        "use_sliding_window": (False, None),
        "layer_types": (None,),
    }.items()
}
_LAYERS_WITH_WINDOWS = rules(
    Use.COMPUTED, "layer_types", "max_window_layers", "sliding_window", "use_sliding_window"
)
_EXPERTS: dict[str, Rule] = {
    **rules(Use.COMPUTED, "num_experts", "num_experts_per_tok", "num_local_experts"),
    # The settings of algorithm.balance_coef decide.
    **rules(Use.HARMLESS, "output_router_logits", "router_aux_loss_coef"),
}
_DENSE_AMONG_EXPERTS = "dense layers among mixture-of-experts layers are not computed"

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="qwen2",
            architecture="Qwen2ForCausalLM",
            qkv_bias=True,
            fixed_head_dim=True,
            defaults={**_DEFAULTS, **_BY_LAYER},
            fields={
                **_COMMON,
                **_LAYERS_WITH_WINDOWS,
                "attention_bias": Only(
                    (True, None),
                    "queries, keys and values of this family always have biases",
                    "Remove the field",
                ),
            },
            window="by layer",
        ),
        Family(
            name="qwen3",
            architecture="Qwen3ForCausalLM",
            qk_norm=True,
            defaults={**_DEFAULTS, **_BY_LAYER, "head_dim": 128},
            fields={
                **_COMMON,
                **_LAYERS_WITH_WINDOWS,
                "attention_bias": Only(
                    (False, None), f"{_ENGINE} no bias in the output projection", _NO_BIAS
                ),
            },
            window="by layer",
        ),
        Family(
            name="llama",
            architecture="LlamaForCausalLM",
            defaults={
                **_DEFAULTS,
                "num_key_value_heads": None,
                "attention_bias": False,
                "mlp_bias": False,
            },
            fields={
                **_COMMON,
                **_NEVER_A_WINDOW,
                **rules(Use.COMPUTED, "attention_bias", "mlp_bias"),
                "is_llama_config": Only((True, None), "this is the family of Llama"),
                "rope_interleaved": Only((False, None), "only rotation in halves is computed"),
            },
        ),
        Family(
            name="mistral",
            architecture="MistralForCausalLM",
            defaults={**_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
            fields={**_COMMON, **rules(Use.COMPUTED, "sliding_window")},
            window="given",
        ),
        Family(
            name="gemma2",
            architecture="Gemma2ForCausalLM",
            output_norms=True,
            centered_norms=True,
            scaled_embedding=True,
            soft_caps=True,
            window="alternating",
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
            fields={
                **_COMMON,
                **rules(
                    Use.COMPUTED,
                    "attn_logit_softcapping",
                    "final_logit_softcapping",
                    "hidden_activation",
                    "layer_types",
                    "query_pre_attn_scalar",
                    "sliding_window",
                ),
                "hidden_act": Only(
                    ("gelu_pytorch_tanh", None), "hidden_activation decides", "Remove the field"
                ),
                "use_bidirectional_attention": Only(
                    (False, None), "only causal attention is computed"
                ),
                # Of how transformers keeps its keys and values.
                "cache_implementation": Use.HARMLESS,
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
            defaults={**_DEFAULTS, **_SWITCHED, "norm_topk_prob": False},
            fields={
                **_COMMON,
                **_EXPERTS,
                **rules(
                    Use.COMPUTED,
                    "moe_intermediate_size",
                    "norm_topk_prob",
                    "sliding_window",
                    "use_sliding_window",
                ),
                "max_window_layers": Use.HARMLESS,
                "attention_bias": Only(
                    (False, None), f"{_ENGINE} no bias in the output projection", _NO_BIAS
                ),
                "decoder_sparse_step": Only((1,), _DENSE_AMONG_EXPERTS),
                "mlp_only_layers": Only(([], None), _DENSE_AMONG_EXPERTS),
            },
            window="switched",
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
            fields={
                **_COMMON,
                **_EXPERTS,
                **rules(Use.COMPUTED, "sliding_window"),
                "router_jitter_noise": Only((0, None), "routing here has no noise", "Set it to 0"),
            },
            window="given",
        ),
    )
}
"""By `model_type`."""
