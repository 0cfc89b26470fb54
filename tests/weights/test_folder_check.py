"""A model folder's tensors against its config.json, from the headers of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.weights.folder_check import INDEX, check_tensors
from tests.actor.workers import make_folder
from tests.empty_weights import write_safetensors

KINDS = ["qwen2", "qwen3", "llama", "gemma2", "qwen3_moe", "mixtral"]


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("folder")
    make_folder(request.param, str(folder))
    return folder


def test_folders_of_transformers_pass(written: Path) -> None:
    check_tensors(written, ModelShape.read(written))


def _copy(source: Path, target: Path, change: dict[str, torch.Tensor], drop: str = "") -> Path:
    tensors = load_file(source / "model.safetensors") | change
    tensors.pop(drop, None)
    (target / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors, target / "model.safetensors")
    return target


def test_a_tensor_too_many_or_too_few_is_named(written: Path, tmp_path: Path) -> None:
    shape, name = ModelShape.read(written), "model.layers.1.self_attn.o_proj"
    for change in (
        {f"{name}.bias": torch.zeros(64)},
        {f"{name}.weight_scale_inv": torch.zeros(1)},
        {"model.layers.4.input_layernorm.weight": torch.zeros(64)},
    ):
        folder = _copy(written, tmp_path, change)
        with pytest.raises(ConfigError, match=f"holds a tensor '{next(iter(change))}' that"):
            check_tensors(folder, shape)
    folder = _copy(written, tmp_path, {}, drop=f"{name}.weight")
    with pytest.raises(ConfigError, match=f"has no tensor '{name}.weight'"):
        check_tensors(folder, shape)


def test_another_shape_or_type_is_named(written: Path, tmp_path: Path) -> None:
    shape, name = ModelShape.read(written), "model.norm.weight"
    folder = _copy(written, tmp_path, {name: torch.zeros(65)})
    with pytest.raises(ConfigError, match=r"shape \[65\], but config.json asks for \[64\]"):
        check_tensors(folder, shape)
    for dtype, text in ((torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")):
        folder = _copy(written, tmp_path, {name: torch.zeros(64).to(dtype)})
        with pytest.raises(ConfigError, match=f"is of type {text}; supported: F32, BF16, F16"):
            check_tensors(folder, shape)


def test_what_other_programs_do_not_read_either_may_be_there(tmp_path: Path) -> None:
    make_folder("qwen3", str(tmp_path))  # its output layer is tied
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    more = {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    save_file(tensors | more, tmp_path / "model.safetensors")
    shape = ModelShape.read(tmp_path)
    check_tensors(tmp_path, shape)
    save_file(tensors | {"lm_head.weight": head[1:].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor 'lm_head.weight' has shape"):
        check_tensors(tmp_path, shape)


def test_the_files_of_the_index_count(tmp_path: Path) -> None:
    make_folder("llama", str(tmp_path))
    shape = ModelShape.read(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    (tmp_path / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    write_safetensors(tmp_path / "consolidated.safetensors", {"another.name": (3,)})
    check_tensors(tmp_path, shape)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"b\.safetensors cannot be read: No such file"):
        check_tensors(tmp_path, shape)
    for text in ('{"weight_map": 3}', "{}", '{"weight_map": {}}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ConfigError, match=r"has no weight_map|holds no \*\.safetensors"):
            check_tensors(tmp_path, shape)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\x02" + b"\x00" * 7 + b"[]", b"\xff" * 9, b"\x02" + b"\x00" * 7 + b"{}x"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    make_folder("qwen3", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a safetensors file: "):
        check_tensors(tmp_path, ModelShape.read(tmp_path))


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    make_folder("qwen3", str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="shorter or longer than its header says"):
        check_tensors(tmp_path, ModelShape.read(tmp_path))
