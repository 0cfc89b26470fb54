"""`passk-fast import-gguf`: the folder computes what the model computed, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from passk_fast.commands.import_gguf import command, import_gguf
from passk_fast.errors import ConfigError, DiskError
from passk_fast.model.shape import ModelShape
from tests.gguf_files import tiny_model, write_gguf

IDS = torch.tensor([[1, 7, 40, 99, 3, 3, 200, 12]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(kind, tied=tied)
    file = write_gguf(tmp_path / "x.gguf", model, pre="smollm")
    out = import_gguf(file, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(out)
    assert again.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)
    assert ModelShape.read(out).tied == tied
    assert AutoTokenizer.from_pretrained(out).chat_template


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantised_values_are_kept_to_the_dtype(dtype: str, tmp_path: Path) -> None:
    model, kind = tiny_model("llama"), gguf.GGMLQuantizationType.Q8_0
    file = write_gguf(tmp_path / "x.gguf", model, quantised=kind)
    assert command([str(file), str(tmp_path / "out"), "--dtype", dtype]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == getattr(torch, dtype)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        exact = gguf.dequantize(gguf.quantize(model.state_dict()[name].numpy(), kind), kind)
        written = torch.from_numpy(exact).to(again.dtype)
        assert torch.equal(again.state_dict()[name], written)


def test_end_tokens_and_scaled_positions_are_written(tmp_path: Path) -> None:
    fields = {
        "tokenizer.ggml.eot_token_id": 0,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
        "llama.expert_count": 0,
    }
    out = import_gguf(
        write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields=fields), tmp_path / "out"
    )
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 0]
    rope = ModelShape.read(out).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 4.0, 5000.0)
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 1e-5  # not float32's


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "gemma2"}, "general.architecture = 'gemma2' cannot be imported"),
        ({"llama.expert_count": 8}, "field llama.expert_count = 8 is not known"),
        ({"llama.attention.sliding_window": 64}, "field llama.attention.sliding_window = 64"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn' cannot be imported"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8, and heads have 32"),
        ({"llama.attention.head_count": "four"}, "head_count is 'four'; it must be a whole number"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.block_count": 3}, r"becomes model\.layers\.2\.\S+ is missing"),
        ({"llama.feed_forward_length": 80}, r"has shape \(.*\); it must have \("),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
        ({"tokenizer.ggml.pre": "falcon"}, "tokenizer.ggml.pre = 'falcon' is not known"),
    ],
)
def test_fields_that_cannot_be_computed_are_refused(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields=fields)
    with pytest.raises(ConfigError, match=message):
        import_gguf(file, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["x.gguf"]


def test_every_tensor_is_placed_or_the_file_is_refused(tmp_path: Path) -> None:
    model, vector = tiny_model("llama"), np.ones(8, dtype=np.float32)
    for name, message in (
        ("rope_freqs.weight", "tensor rope_freqs.weight is not known here"),
        ("blk.0.attn_q.bias", "tensor blk.0.attn_q.bias has no place in a llama model"),
    ):
        file = write_gguf(tmp_path / "x.gguf", model, extra={name: vector})
        with pytest.raises(ConfigError, match=message):
            import_gguf(file, tmp_path / "out")
    missing = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "x.gguf", model, left_out=(missing,))
    with pytest.raises(ConfigError, match=f"becomes {missing} is missing"):
        import_gguf(file, tmp_path / "out")


def test_files_and_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", tiny_model("llama"))
    with pytest.raises(ConfigError, match="no such file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    for size in (0, 3, 100, 5000, whole.stat().st_size - 1):
        part = tmp_path / "part.gguf"
        part.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ConfigError, match="not a whole GGUF file"):
            import_gguf(part, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        import_gguf(whole, tmp_path)
    with pytest.raises(DiskError, match="cannot be written"):
        import_gguf(whole, "/proc/nowhere/out")
    with pytest.raises(ConfigError, match="--dtype must be one of float32"):
        import_gguf(whole, tmp_path / "out", dtype="int8")
    with pytest.raises(ConfigError, match="usage: passk-fast import-gguf"):
        command([str(whole)])
