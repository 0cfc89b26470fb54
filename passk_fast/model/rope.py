"""Rotary position embedding as config.json describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import Fields
from passk_fast.model.fields import Only, Rule, Use, check_fields, rules

Kind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: the base and how frequencies are scaled for longer contexts.

    Within `max_position_embeddings`, which no sequence exceeds here, "dynamic" is "default".
    """

    theta: float
    kind: Kind = "default"
    factor: float = 1.0
    """linear, llama3, yarn: by how much frequencies are divided."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_positions / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_positions / this stay as they are."""
    original_max_positions: int = 0
    """llama3, yarn: positions that the model was first trained with."""
    fast_rotations: float = 32.0
    """yarn (`beta_fast`): channels that turn at least so often within original_max_positions keep
    their frequency."""
    slow_rotations: float = 1.0
    """yarn (`beta_slow`): channels that turn at most so often are divided by `factor`."""
    whole_channels: bool = True
    """yarn (`truncate`): the channels between the two are counted in whole numbers."""
    amplitude: float = 1.0
    """yarn (`attention_factor`): cosine and sine are multiplied by it."""


_OWN: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    ),
}
"""Fields that a kind computes with, besides those of all kinds."""


def rope_rules(kind: str) -> dict[str, Rule]:
    """How the fields of rope_parameters (or rope_scaling) are treated for a kind of `Kind`."""
    return {
        **rules(Use.COMPUTED, "rope_type", "type", "rope_theta", *_OWN[kind]),
        "partial_rotary_factor": Only((1, None), "only the rotation of whole heads is computed"),
        "finetuned": Use.HARMLESS,
    }


def read_rope(fields: Fields, family: str) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before).

    ConfigError for a kind that is not supported, and for fields that its rules do not accept.
    """
    old = fields.section("rope_scaling")
    scaling = old if old.values else fields.section("rope_parameters")
    theta = (scaling if scaling.has("rope_theta") else fields).number("rope_theta")
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    if kind not in get_args(Kind):
        raise ConfigError(
            f"{fields.source}: rope type {kind!r} is not supported; supported: "
            f"{', '.join(get_args(Kind))}."
        )
    name = "rope_scaling" if old.values else "rope_parameters"
    check_fields(scaling, rope_rules(str(kind)), family, inside=name)
    match kind:
        case "linear":
            return Rope(theta=theta, kind="linear", factor=scaling.number("factor"))
        case "dynamic":
            return Rope(theta=theta, kind="dynamic", factor=scaling.number("factor"))
        case "llama3":
            return Rope(
                theta=theta,
                kind="llama3",
                factor=scaling.number("factor"),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_max_positions=_original_positions(fields, scaling),
            )
        case "yarn":
            return _yarn(fields, scaling, theta)
    return Rope(theta=theta)


def _yarn(fields: Fields, scaling: Fields, theta: float) -> Rope:
    """transformers' defaults where a field is missing or null."""
    factor, original = scaling.number("factor"), _original_positions(fields, scaling)
    reached = int(original * factor)
    if fields.count("max_position_embeddings") > reached:
        raise ConfigError(
            f"{fields.source}: config.json says max_position_embeddings = "
            f"{fields.count('max_position_embeddings')}, more than yarn's "
            f"original_max_position_embeddings x factor = {reached}, which is as far as vLLM "
            f"computes it. Set max_position_embeddings to {reached} or less."
        )

    def either(name: str, default: float) -> float:
        return scaling.number(name) if scaling.has(name) else default

    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        fast_rotations=either("beta_fast", 32.0),
        slow_rotations=either("beta_slow", 1.0),
        whole_channels=scaling.flag("truncate") if scaling.has("truncate") else True,
        amplitude=_amplitude(scaling, factor),
    )


def _amplitude(scaling: Fields, factor: float) -> float:
    """transformers' `attention_factor`: given, or from `mscale` and `mscale_all_dim`, or 0.1
    ln(factor) + 1 (YaRN, equation 15: the square root of the attention's 1 / t)."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    if scaling.has("mscale") and scaling.has("mscale_all_dim"):
        return scale(scaling.number("mscale")) / scale(scaling.number("mscale_all_dim"))
    return scale(1.0)


def _original_positions(fields: Fields, scaling: Fields) -> int:
    """The first that is given; transformers looks in the same order."""
    name = "original_max_position_embeddings"
    for found in (fields, scaling):
        if found.has(name):
            return found.count(name)
    return fields.count("max_position_embeddings")
