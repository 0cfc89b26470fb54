"""What is read from config.json, against transformers' own reading, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from passk_fast.config import ShapeConfig
from passk_fast.errors import ConfigError
from passk_fast.model.families import FAMILIES
from passk_fast.model.shape import ModelShape
from tests.actor.workers import hf_config

PUBLISHED = sorted((Path(__file__).parents[2] / "configs" / "models").iterdir())
KINDS = ["qwen2", "qwen3", "llama", "gemma2", "qwen3_moe", "mixtral"]


def smallest(family: str, **changes: object) -> dict[str, object]:
    """A config.json with the fields that have no default."""
    fields: dict[str, object] = {
        "model_type": family,
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 128,
    }
    mixture = FAMILIES[family].mixture
    if mixture:
        fields |= {"num_local_experts": 8, "num_experts_per_tok": 2, mixture.width_field: 48}
    return fields | changes


def write(folder: Path, fields: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def check_against(hf: PretrainedConfig, shape: ModelShape) -> None:
    """Every size that transformers' configuration object has."""
    heads = hf.num_attention_heads
    assert shape.family.name == hf.model_type
    assert shape.num_layers == hf.num_hidden_layers
    assert shape.hidden == hf.hidden_size
    assert shape.ffn_width == hf.intermediate_size
    assert shape.num_heads == heads
    assert shape.num_kv_heads == hf.num_key_value_heads
    assert shape.head_dim == (getattr(hf, "head_dim", None) or hf.hidden_size // heads)
    assert shape.vocab == hf.vocab_size
    assert shape.tied == hf.tie_word_embeddings
    assert shape.norm_eps == hf.rms_norm_eps
    assert shape.max_positions == hf.max_position_embeddings
    assert shape.rope.theta == hf.rope_parameters["rope_theta"]
    assert shape.rope.kind == hf.rope_parameters["rope_type"]
    assert shape.num_experts == getattr(hf, "num_local_experts", 0)
    assert shape.experts_per_token == getattr(hf, "num_experts_per_tok", 0)
    caps = [getattr(hf, f"{name}_logit_softcapping", None) or 0.0 for name in ("attn", "final")]
    assert [shape.attention_soft_cap, shape.logit_soft_cap] == caps
    scale = getattr(hf, "query_pre_attn_scalar", None)
    assert shape.softmax_scale == (scale and scale**-0.5)
    if shape.windows:
        sliding = [kind == "sliding_attention" for kind in hf.layer_types]
        assert shape.windows == tuple(hf.sliding_window if slides else 0 for slides in sliding)
    if shape.num_experts:
        assert shape.mlp_width == getattr(hf, "moe_intermediate_size", hf.intermediate_size)
        assert shape.normalized_experts == getattr(hf, "norm_topk_prob", True)
    else:
        assert shape.mlp_width == hf.intermediate_size


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_models_are_read_as_transformers_reads_them(folder: Path) -> None:
    check_against(AutoConfig.from_pretrained(folder), ModelShape.read(folder))


@pytest.mark.parametrize("kind", [*KINDS, "qwen3_moe_raw"])
def test_folders_that_transformers_wrote(kind: str, tmp_path: Path) -> None:
    hf_config(kind).save_pretrained(tmp_path)
    check_against(AutoConfig.from_pretrained(tmp_path), ModelShape.read(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_are_left_out_have_transformers_defaults(family: str, tmp_path: Path) -> None:
    folder = write(tmp_path, smallest(family))
    check_against(AutoConfig.from_pretrained(folder), ModelShape.read(folder))


def test_llama_may_leave_out_its_key_value_heads() -> None:
    fields = smallest("llama")
    del fields["num_key_value_heads"]
    assert ModelShape.parse(fields).num_kv_heads == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_are_the_familys(family: str, tmp_path: Path) -> None:
    """Against the parameters of the model that transformers builds."""
    from transformers import AutoModelForCausalLM

    folder = write(tmp_path, smallest(family))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    names = dict(model.named_parameters())
    shape = ModelShape.read(folder)
    assert type(model).__name__ == shape.family.architecture
    assert ("model.layers.0.self_attn.q_proj.bias" in names) == shape.qkv_bias
    assert ("model.layers.0.self_attn.q_norm.weight" in names) == shape.qk_norm
    after = "model.layers.0.post_feedforward_layernorm.weight"
    assert (after in names) == shape.family.output_norms


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123456.0}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
        {"rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
        {"original_max_position_embeddings": 64, "rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": None},
    ],
)
@pytest.mark.megatron
def test_rotary_frequencies_are_those_of_transformers(
    fields: dict[str, object], tmp_path: Path
) -> None:
    """Bit for bit: positions in the thousands leave no room for rounding."""
    from passk_fast.actor.model import rotary_frequencies

    folder = write(tmp_path, smallest("llama", **fields))
    hf = AutoConfig.from_pretrained(folder)
    shape = ModelShape.read(folder)
    kind = hf.rope_parameters["rope_type"]
    if kind == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        expected = LlamaRotaryEmbedding.compute_default_rope_parameters(hf)[0]
    else:
        expected = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))[0]
    assert torch.equal(rotary_frequencies(shape), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model family 'gpt2' is not supported; supported: qwen2, qwen3"),
        ({"model_type": 3}, "model_type = 3; it must be a string"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "architecture Qwen2ForCausalLM is not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'; it must be a"),
        ({"hidden_size": "64"}, "hidden_size = '64'; it must be a positive whole number"),
        ({"hidden_size": 64.0}, r"hidden_size = 64\.0; it must be a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0; it must be a positive whole"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True; it must be a positive whole"),
        ({"vocab_size": None}, "vocab_size = None; it must be a positive whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small'; it must be a positive number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0; it must be a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta = inf; it must be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'; it must be true or false"),
        ({"rope_scaling": [1]}, r"rope_scaling = \[1\]; it must be an object"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported; supported: defa"),
        ({"rope_scaling": {"type": "linear"}}, "config.json has no field 'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not"),
        ({"attention_bias": True}, "attention_bias = true is not supported for 'llama'"),
        ({"mlp_only_layers": [0]}, "dense layers among mixture-of-experts layers"),
        ({"decoder_sparse_step": 2}, "dense layers among mixture-of-experts layers"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^somewhere: .*{message}"):
        ModelShape.parse(smallest("llama", **change), "somewhere")


@pytest.mark.parametrize("field", smallest("qwen3_moe"))
def test_a_missing_field_is_named(field: str) -> None:
    fields = smallest("qwen3_moe")
    del fields[field]
    name = "num_experts" if field == "num_local_experts" else field
    with pytest.raises(ConfigError, match=f"^model: config.json has no field '{name}'"):
        ModelShape.parse(fields)


def break_file(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: break_file(folder, "{"),
        lambda folder: break_file(folder, "[]"),
        lambda folder: (folder / "config.json").unlink(missing_ok=True),
    ],
    ids=["no JSON", "no object", "no file"],
)
def test_a_file_that_cannot_be_read_is_named(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    damage(tmp_path)
    with pytest.raises(ConfigError, match=r"^model\.path: .*config\.json cannot be read"):
        ModelShape.read(tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "qwen3_moe"])
def test_a_new_model_is_what_its_folder_says(architecture: str, tmp_path: Path) -> None:
    from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model

    mixture = {"num_experts": 6, "experts_per_token": 2} if architecture == "qwen3_moe" else {}
    config = ShapeConfig(architecture=architecture, **mixture)  # type: ignore[arg-type]
    make_tiny_model(config, character_tokenizer("abcdefgh"), 0, tmp_path)
    read = ModelShape.read(tmp_path)
    assert read == ModelShape.of(config, vocab=16)
    assert replace(read, vocab=0) == ModelShape.of(config)


def test_vocabularies_are_padded_for_each_side() -> None:
    shape = ModelShape.parse(smallest("qwen3"))
    assert [shape.trainer_vocab(tensor) for tensor in (1, 2, 4)] == [56, 64, 64]
    assert shape.engine_vocab == 64


def test_gemma2_may_choose_its_windows_and_drop_its_caps() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    fields = smallest("gemma2", layer_types=kinds, sliding_window=7)
    shape = ModelShape.parse(fields | {"attn_logit_softcapping": None})
    assert shape.windows == (0, 7, 7)
    assert shape.attention_soft_cap == 0.0
    assert shape.logit_soft_cap == 30.0
    assert shape.needs_our_layers
    assert ModelShape.parse(smallest("gemma2", sliding_window=None)).windows == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation = 'gelu'; it must be 'gelu_pytorch"),
        ({"layer_types": ["full_attention"]}, "layer_types = .* a list of 3 names"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types = .* a list of 3 names"),
        ({"final_logit_softcapping": -1}, "final_logit_softcapping = -1; it must be a positive"),
    ],
)
def test_gemma2_fields_of_a_wrong_value_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelShape.parse(smallest("gemma2", **changes))
