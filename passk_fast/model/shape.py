"""What a model is: every size and switch that the project reads, parsed once from config.json.

The weight layout, the actor, FLOP counts, the run checks, the plan, the warm start, conversion,
routing replay and the engine's start all take a `ModelShape`; nothing else reads config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from passk_fast.config import ShapeConfig
from passk_fast.errors import ConfigError
from passk_fast.model.config_json import Fields, read_config
from passk_fast.model.families import FAMILIES, Family

TRAINER_VOCAB_MULTIPLE = 8
"""The trainer pads the vocabulary to a multiple of this times the tensor-parallel size."""
ENGINE_VOCAB_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this before it divides it."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: the base and how frequencies are scaled for longer contexts."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    """linear, llama3: by how much frequencies are divided."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_positions / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_positions / this stay as they are."""
    original_max_positions: int = 0
    """llama3: positions that the model was first trained with."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """One model's sizes.

    Example: Qwen3-32B has family.name "qwen3", 64 layers, hidden 5120, ffn_width 25600, 64 query
    heads over 8 key-value heads of 128 channels, vocab 151936 and no experts.
    """

    family: Family
    num_layers: int
    hidden: int
    ffn_width: int
    """`intermediate_size`: width of a dense layer's gated MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads."""
    head_dim: int
    """Channels per head."""
    vocab: int
    """Rows of the embedding in the model folder; 0 where the tokenizer is not known yet."""
    tied: bool
    """The output layer is the embedding."""
    norm_eps: float
    rope: Rope
    max_positions: int
    qkv_bias: bool
    qk_norm: bool
    softmax_scale: float | None = None
    """What products of queries and keys are multiplied by; None: head_dim ** -0.5."""
    attention_soft_cap: float = 0.0
    """Attention scores s become cap tanh(s / cap); 0: they stay."""
    logit_soft_cap: float = 0.0
    """The same of the output layer's logits, before the temperature."""
    windows: tuple[int, ...] = ()
    """By layer, how many keys a query sees, itself included (0: all before it); empty: all do."""
    num_experts: int = 0
    """Experts per layer; 0 for a dense model."""
    experts_per_token: int = 0
    expert_width: int = 0
    """Width of one expert's gated MLP."""
    normalized_experts: bool = True
    """The weights of a token's experts sum to 1; otherwise they are shares of a softmax over all
    experts."""

    @classmethod
    def read(cls, folder: str | Path, source: str = "model.path") -> Self:
        """From `folder`/config.json; ConfigError as for `parse`, or when it cannot be read."""
        return cls.parse(read_config(folder, source), source)

    @classmethod
    def parse(cls, config: Mapping[str, object], source: str = "model") -> Self:
        """From the contents of a config.json.

        ConfigError, beginning with `source`, for a family without a table entry, for a field that
        is missing or of a wrong type, and for a setting that is not supported.
        """
        family = _family(Fields(config, source))
        fields = Fields({**family.defaults, **config}, source)
        _refuse_unsupported(fields, family)
        hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        count, chosen, width, normalized = _experts(fields, family)
        return cls(
            family=family,
            num_layers=fields.count("num_hidden_layers"),
            hidden=hidden,
            ffn_width=fields.count("intermediate_size"),
            num_heads=heads,
            num_kv_heads=fields.count_or_null("num_key_value_heads") or heads,
            head_dim=fields.count_or_null("head_dim") or hidden // heads,
            vocab=fields.count("vocab_size"),
            tied=fields.flag("tie_word_embeddings"),
            norm_eps=fields.number("rms_norm_eps"),
            rope=_rope(fields),
            max_positions=fields.count("max_position_embeddings"),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            **_soft_caps(fields, family),
            windows=_windows(fields, family),
            num_experts=count,
            experts_per_token=chosen,
            expert_width=width,
            normalized_experts=normalized,
        )

    @classmethod
    def of(cls, shape: ShapeConfig, vocab: int = 0) -> Self:
        """A new model of a configuration's shape, with `vocab` tokens (0: not known yet)."""
        parsed = cls.parse(new_config(shape, max(1, vocab)), "model.shape")
        return replace(parsed, vocab=vocab)

    @property
    def mlp_width(self) -> int:
        """Width of one gated MLP: an expert's in a mixture, else the layer's."""
        return self.expert_width if self.num_experts else self.ffn_width

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by, before it is rounded to the weights' type."""
        return self.hidden**0.5 if self.family.scaled_embedding else 1.0

    @property
    def needs_our_layers(self) -> bool:
        """Whether only Megatron's local layers with our attention compute the model."""
        return self.family.output_norms or bool(self.attention_soft_cap) or any(self.windows)

    @property
    def expert_index_dtype(self) -> np.dtype[np.uint8] | np.dtype[np.int16]:
        """The smallest type that holds every expert's index: one byte up to 256 experts."""
        return np.dtype(np.uint8) if self.num_experts <= 256 else np.dtype(np.int16)

    @property
    def engine_vocab(self) -> int:
        """Rows of vLLM's embedding, padding included."""
        return _round_up(self.vocab, ENGINE_VOCAB_MULTIPLE)

    def trainer_vocab(self, tensor: int) -> int:
        """Rows of the trainer's embedding over `tensor` tensor-parallel ranks, padding included."""
        return _round_up(self.vocab, TRAINER_VOCAB_MULTIPLE * tensor)

    def check_routing_replay(self, mode: str) -> None:
        """ConfigError for a dense model unless `mode` (algorithm.routing_replay) is "off"."""
        if mode != "off" and not self.num_experts:
            raise ConfigError(
                f"algorithm.routing_replay = {mode!r} has no effect: the model "
                f"({self.family.name}) is not a mixture of experts. Take 'off'."
            )


def new_config(shape: ShapeConfig, vocab: int) -> dict[str, object]:
    """The config.json of a new model; ConfigError where its family cannot have the shape."""
    fields: dict[str, object] = {
        "model_type": shape.architecture,
        "vocab_size": vocab,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tie_embeddings,
    }
    if shape.architecture != "qwen2":
        fields["head_dim"] = shape.head_dim
    elif shape.num_heads * shape.head_dim != shape.hidden_size:
        raise ConfigError(
            "model.shape.architecture = 'qwen2' needs num_heads x head_dim = hidden_size, got "
            f"{shape.num_heads} x {shape.head_dim} and {shape.hidden_size}."
        )
    if shape.architecture == "qwen3_moe":
        fields |= {
            "num_experts": shape.num_experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.intermediate_size,
            "norm_topk_prob": True,
        }
    return fields


def _family(fields: Fields) -> Family:
    """The table entry of `model_type`; `architectures`, where it is given, must agree."""
    name = fields.text("model_type")
    if name not in FAMILIES:
        raise ConfigError(
            f"{fields.source}: the model family {name!r} is not supported; supported: "
            f"{', '.join(FAMILIES)}. To add one, give it an entry in passk_fast/model/families.py."
        )
    family = FAMILIES[name]
    architectures = fields.values.get("architectures") or [family.architecture]
    if not isinstance(architectures, list):
        raise fields.fail("architectures", "a list")
    if architectures[0] != family.architecture:
        raise ConfigError(
            f"{fields.source}: architecture {architectures[0]} is not supported with model_type = "
            f"{name!r}; supported: {family.architecture}."
        )
    return family


def _refuse_unsupported(fields: Fields, family: Family) -> None:
    if fields.values.get("mlp_only_layers") or fields.values.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(
            f"{fields.source}: dense layers among mixture-of-experts layers (mlp_only_layers, "
            "decoder_sparse_step) are not supported."
        )
    name, wanted = family.activation_field, family.activation
    if fields.values.get(name, wanted) != wanted:
        raise fields.fail(name, f"{wanted!r}, the only one supported for {family.name!r}")
    if fields.values.get("attention_bias") and not family.qkv_bias:
        raise ConfigError(
            f"{fields.source}: attention_bias = true is not supported for {family.name!r}."
        )


def _soft_caps(fields: Fields, family: Family) -> dict[str, float]:
    """Fields of the shape for a family with soft caps; null turns a cap off."""
    if not family.soft_caps:
        return {}
    caps = {
        "attention_soft_cap": "attn_logit_softcapping",
        "logit_soft_cap": "final_logit_softcapping",
    }
    found = {mine: fields.number(name) for mine, name in caps.items() if fields.has(name)}
    return found | {"softmax_scale": fields.number("query_pre_attn_scalar") ** -0.5}


def _windows(fields: Fields, family: Family) -> tuple[int, ...]:
    """By layer, for a family with `alternating_windows`: those of even index, or `layer_types`."""
    if not family.alternating_windows or not fields.has("sliding_window"):
        return ()
    count, size = fields.count("num_hidden_layers"), fields.count("sliding_window")
    kinds = fields.values.get("layer_types") or ["sliding_attention", "full_attention"] * count
    known = {"sliding_attention": size, "full_attention": 0}
    if not isinstance(kinds, list) or len(kinds) < count or not set(kinds) <= set(known):
        raise fields.fail("layer_types", f"a list of {count} names out of {', '.join(known)}")
    return tuple(known[kind] for kind in kinds[:count])


def _experts(fields: Fields, family: Family) -> tuple[int, int, int, bool]:
    """(experts, experts per token, width of one, whether weights are normalised)."""
    mixture = family.mixture
    if mixture is None:
        return 0, 0, 0, True
    # transformers writes num_local_experts for every family; published folders have num_experts.
    name = "num_local_experts" if fields.has("num_local_experts") else "num_experts"
    normalized = fields.flag(mixture.normalized_field) if mixture.normalized_field else True
    return (
        fields.count(name),
        fields.count("num_experts_per_tok"),
        fields.count(mixture.width_field),
        normalized,
    )


def _rope(fields: Fields) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before)."""
    old = fields.section("rope_scaling")
    scaling = old if old.values else fields.section("rope_parameters")
    theta = scaling if scaling.has("rope_theta") else fields
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    partial = scaling.values.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise ConfigError(
            f"{fields.source}: partial_rotary_factor = {partial!r} is not supported; only 1 is."
        )
    match kind:
        case "default":
            return Rope(theta=theta.number("rope_theta"))
        case "linear":
            factor = scaling.number("factor")
            return Rope(theta=theta.number("rope_theta"), kind="linear", factor=factor)
        case "llama3":
            return Rope(
                theta=theta.number("rope_theta"),
                kind="llama3",
                factor=scaling.number("factor"),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_max_positions=_original_positions(fields, scaling),
            )
    raise ConfigError(
        f"{fields.source}: rope type {kind!r} is not supported; supported: default, linear, llama3."
    )


def _original_positions(fields: Fields, scaling: Fields) -> int:
    """The first that is given; transformers looks in the same order."""
    name = "original_max_position_embeddings"
    for found in (fields, scaling):
        if found.has(name):
            return found.count(name)
    return fields.count("max_position_embeddings")


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
