"""Hugging Face folders: sharded writing and streamed reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from passk_fast.errors import ConfigError
from passk_fast.weights.hf import HFReader, write_folder


@pytest.mark.parametrize("max_file_bytes", [1 << 30, 500])
def test_what_is_written_is_read(tmp_path: Path, max_file_bytes: int) -> None:
    like = tmp_path / "like"
    like.mkdir()
    (like / "config.json").write_text("{}")
    tensors = {f"layer.{i}": torch.randn(10, i + 1) for i in range(8)}
    out = tmp_path / "out"
    write_folder(
        tensors.items(), out, like=like, dtype=torch.float32, max_file_bytes=max_file_bytes
    )
    reader = HFReader(out)
    assert sorted(reader.names()) == sorted(tensors)
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in tensors.items())
    assert (out / "config.json").is_file()
    files = sorted(f.name for f in out.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (max_file_bytes > 500)
    assert not list(out.glob("*.tmp"))


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \*\.safetensors file"):
        HFReader(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        HFReader(tmp_path)


def test_parts_of_tensors_are_read(tmp_path: Path) -> None:
    matrix, vector = torch.arange(12.0).view(3, 4), torch.arange(5.0)
    save_file({"matrix": matrix, "vector": vector}, tmp_path / "model.safetensors")
    reader = HFReader(tmp_path)
    assert torch.equal(reader.read_part("matrix", 1, 3, 2, 4), matrix[1:3, 2:4])
    assert torch.equal(reader.read_part("vector", 1, 4, 0, 1), vector[1:4, None])
    assert reader.shape("matrix") == (3, 4)
    with pytest.raises(ConfigError, match="has no tensor 'gone'"):
        reader.shape("gone")
