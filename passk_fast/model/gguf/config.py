"""config.json and generation_config.json of a GGUF file; what they cannot say is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passk_fast.errors import ConfigError
from passk_fast.model.families import FAMILIES
from passk_fast.model.gguf.file import GgufFile

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How an architecture of llama.cpp differs from the next."""

    permuted: bool = False
    """Rows of the query and key projections are in llama.cpp's order of rotary channels."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(permuted=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
}
"""By `general.architecture`, which is `model_type` in config.json."""

_READ = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
)
"""Fields below the architecture's name that are computed. Any other one is refused."""
_NEUTRAL: Mapping[str, object] = {"expert_count": 0, "expert_used_count": 0}
"""Further fields, with the value that changes nothing."""


def architecture(file: GgufFile) -> Architecture:
    """The table's entry; ConfigError for an architecture that is not in it."""
    name = file.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{file.path}: general.architecture = {name!r} cannot be imported; can be: "
            f"{', '.join(ARCHITECTURES)}. Take the model's Hugging Face folder instead."
        )
    return ARCHITECTURES[name]


def config_json(file: GgufFile) -> dict[str, object]:
    """The fields of config.json but the data type.

    Raises:
        ConfigError: an architecture or a field that is not known, or a value that does not fit.
    """
    architecture(file)
    kind = file.text("general.architecture")
    _refuse_unknown(file, kind)
    heads = file.count(f"{kind}.attention.head_count")
    hidden = file.count(f"{kind}.embedding_length")
    head_dim = file.count(f"{kind}.attention.key_length", default=hidden // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        found = file.count(f"{kind}.{name}", default=head_dim)
        if found != head_dim:
            raise ConfigError(
                f"{file.path}: field {kind}.{name} = {found}, and heads have {head_dim} channels; "
                "only equal sizes can be imported."
            )
    fields: dict[str, object] = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": file.tensor_shape(EMBEDDING)[0],
        "hidden_size": hidden,
        "intermediate_size": file.count(f"{kind}.feed_forward_length"),
        "num_hidden_layers": file.count(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.count(f"{kind}.attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.count(f"{kind}.context_length"),
        "rms_norm_eps": file.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.number(f"{kind}.rope.freq_base", default=10_000.0),
        "tie_word_embeddings": OUTPUT not in file.tensor_names(),
    }
    return {**fields, **_rope_scaling(file, kind), **_special_ids(file)}


def generation_config_json(file: GgufFile) -> dict[str, object]:
    """The fields of generation_config.json: begin, padding, and every end token."""
    special = _special_ids(file)
    ends = [special["eos_token_id"]]
    for name in ("eot", "eom"):
        found = file.get(f"tokenizer.ggml.{name}_token_id")
        if found is not None and found not in ends:
            ends.append(file.count(f"tokenizer.ggml.{name}_token_id"))
    return {**special, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _refuse_unknown(file: GgufFile, kind: str) -> None:
    for field in file.fields():
        name = field.removeprefix(f"{kind}.")
        if name == field or name in _READ or file.get(field) == _NEUTRAL.get(name, field):
            continue
        raise ConfigError(
            f"{file.path}: field {field} = {file.get(field)!r:.60} is not known here, and ignoring "
            "it could change what the model computes. Take the model's Hugging Face folder instead."
        )


def _rope_scaling(file: GgufFile, kind: str) -> dict[str, object]:
    scaling = file.get(f"{kind}.rope.scaling.type")
    if scaling in (None, "none"):
        return {}
    if scaling != "linear":
        raise ConfigError(
            f"{file.path}: field {kind}.rope.scaling.type = {scaling!r} cannot be imported; can "
            "be: 'none', 'linear'. Take the model's Hugging Face folder instead."
        )
    factor = file.number(f"{kind}.rope.scaling.factor")
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def _special_ids(file: GgufFile) -> dict[str, int]:
    """Begin, end and padding token; a file without an end token is refused."""
    ids = {"eos_token_id": file.count("tokenizer.ggml.eos_token_id")}
    for name, field in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        full = f"tokenizer.ggml.{field}_token_id"
        if file.get(full) is not None:
            ids[name] = file.count(full)
    return ids
