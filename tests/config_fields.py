"""Examples for every field of every family's allow-list: what a value of it is expected to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from passk_fast.model.families import FAMILIES
from passk_fast.model.fields import Only, Use

VOCAB = 50
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Case:
    """A change of config.json that changes what the model computes, and the fields it shows."""

    fields: tuple[str, ...]
    change: dict[str, Any]
    base: dict[str, Any] | None = None
    """What the logits must differ from, with the same weights; None where weights differ too."""


def base_config(family: str) -> dict[str, Any]:
    """config.json of a tiny model of a family."""
    config = {"model_type": family, "architectures": [FAMILIES[family].architecture], **BASE}
    if family != "qwen2":
        config["head_dim"] = 32
    mixture = FAMILIES[family].mixture
    if mixture:
        config |= {"num_experts_per_tok": 2, "num_local_experts": 4, mixture.width_field: 48}
    if family == "mistral":
        config["sliding_window"] = None
    if family == "gemma2":
        # transformers gives the embedding of a padding token no gradient.
        config |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        config["pad_token_id"] = None
    return config


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "linear": _rope("linear", factor=4.0),
    "llama3": _rope("llama3", **LLAMA3, original_max_position_embeddings=32),
    "yarn": _rope("yarn", factor=8.0, original_max_position_embeddings=32),
    "dynamic": _rope("dynamic", factor=4.0),
}
SIZES = Case(
    (
        "architectures",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "tie_word_embeddings",
        "vocab_size",
    ),
    {
        "hidden_size": 96,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "vocab_size": 46,
    },
)


def cases(family: str) -> dict[str, Case]:
    """What a family computes, by name."""
    fields = FAMILIES[family].fields
    out = {
        "sizes": SIZES,
        "norms": Case(("rms_norm_eps",), {"rms_norm_eps": 0.3}, {}),
        "theta": Case(("rope_theta",), {"rope_theta": 100.0}, {}),
        "old-rope": Case(
            ("rope_scaling", "original_max_position_embeddings"),
            {
                "rope_scaling": {"type": "yarn", "factor": 8.0},
                "original_max_position_embeddings": 32,
                "rope_theta": 1e4,
            },
            {},
        ),
    }
    for kind, change in ROPES.items():
        # Within the original length, dynamic rope is default rope with its own base.
        base = {"rope_theta": 1e6} if kind == "dynamic" else {}
        out[kind] = Case(("rope_parameters",), change, base)
    if not FAMILIES[family].fixed_head_dim:
        out["head_dim"] = Case(("head_dim",), {"head_dim": 64})
    if "sliding_window" in fields and not isinstance(fields["sliding_window"], Only):
        window: dict[str, Any] = {"sliding_window": 5}
        if "use_sliding_window" in fields:
            window["use_sliding_window"] = True
        if FAMILIES[family].window == "alternating":
            kinds = ["full_attention", "sliding_attention"]
            out["layer_types"] = Case(("layer_types",), {**window, "layer_types": kinds}, window)
        if FAMILIES[family].window == "by layer":
            out["layer_types"] = Case(
                ("layer_types",), {**window, "layer_types": ["sliding_attention"] * 2}, {}
            )
            window["max_window_layers"] = 0
        out["window"] = Case(tuple(window), window, {})
    if fields.get("attention_bias") is Use.COMPUTED:
        out["attention_bias"] = Case(("attention_bias",), {"attention_bias": True})
    if fields.get("mlp_bias") is Use.COMPUTED:
        out["mlp_bias"] = Case(("mlp_bias",), {"mlp_bias": True})
        out["biases"] = Case((), {"mlp_bias": True, "attention_bias": True})
    if FAMILIES[family].mixture:
        out["experts"] = Case(("num_experts", "num_local_experts"), {"num_local_experts": 6})
        out["top_k"] = Case(("num_experts_per_tok",), {"num_experts_per_tok": 3}, {})
    if family == "gemma2":
        cap, scale = {"attn_logit_softcapping": 0.5}, {"query_pre_attn_scalar": 7}
        out["attention_cap"] = Case(tuple(cap), cap, {})
        out["scale"] = Case(tuple(scale), scale, {})
    if family == "qwen3_moe":
        out["width"] = Case(("moe_intermediate_size",), {"moe_intermediate_size": 32})
        out["norm_topk"] = Case(("norm_topk_prob",), {"norm_topk_prob": True}, {})
    return out


REFUSED: dict[str, tuple[dict[str, Any], ...]] = {
    "attention_bias": ({"attention_bias": True},),
    "attention_dropout": ({"attention_dropout": 0.1},),
    "decoder_sparse_step": ({"decoder_sparse_step": 2},),
    "head_dim": ({"head_dim": 32},),
    "hidden_act": tuple({"hidden_act": name} for name in ("gelu", "relu", "gelu_new")),
    "hidden_activation": ({"hidden_activation": "gelu"}, {"hidden_activation": "relu"}),
    "is_causal": ({"is_causal": False},),
    "is_encoder_decoder": ({"is_encoder_decoder": True},),
    "is_llama_config": ({"is_llama_config": False},),
    "layer_types": ({"layer_types": ["sliding_attention", "full_attention"]},),
    "max_window_layers": (
        {"max_window_layers": 1, "use_sliding_window": True, "sliding_window": 5},
        {"max_window_layers": 2, "use_sliding_window": True, "sliding_window": 5},
    ),
    "mlp_bias": ({"mlp_bias": True},),
    "mlp_only_layers": ({"mlp_only_layers": [0]},),
    "partial_rotary_factor": (
        {"partial_rotary_factor": 0.5},
        _rope("default", partial_rotary_factor=0.5),
    ),
    "quantization_config": ({"quantization_config": {"quant_method": "fp8"}},),
    "rope_interleaved": ({"rope_interleaved": True},),
    "router_jitter_noise": ({"router_jitter_noise": 0.1},),
    "sliding_window": ({"sliding_window": 5}, {"sliding_window": 0, "use_sliding_window": True}),
    "use_bidirectional_attention": ({"use_bidirectional_attention": True},),
    "use_mrope": ({"use_mrope": True},),
    "use_sliding_window": ({"use_sliding_window": True},),
}
"""Values that a family refuses by the field's name, unless it computes the field."""

HARMLESS: dict[str, Any] = {
    "cache_implementation": "hybrid",
    "_attn_implementation_autoset": True,
    "_name_or_path": "somewhere/else",
    "bos_token_id": 3,
    "chunk_size_feed_forward": 1,
    "dtype": "bfloat16",
    "eos_token_id": [4, 5],
    "id2label": {"0": "a", "1": "b"},
    "initializer_range": 0.5,
    "label2id": {"a": 0, "b": 1},
    "max_window_layers": 1,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_router_logits": True,
    "pad_token_id": 6,
    "pretraining_tp": 2,
    "problem_type": "regression",
    "return_dict": True,
    "router_aux_loss_coef": 0.5,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.40.0",
    "unsloth_fixed": True,
    "unsloth_version": "2025.1",
    "use_cache": False,
}
"""Values that change no logits."""
