"""Hugging Face folders: sharded writing and streamed reading."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from passk_fast.errors import ConfigError, DiskError
from passk_fast.weights.hf import HFReader, whole_or_absent, write_folder


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


@pytest.mark.parametrize(
    ("fields", "key"),
    [({}, "torch_dtype"), ({"dtype": "bfloat16"}, "dtype"), ({"torch_dtype": "x"}, "torch_dtype")],
)
def test_config_json_names_the_dtype_written(
    tmp_path: Path, fields: dict[str, str], key: str
) -> None:
    like = tmp_path / "like"
    like.mkdir()
    (like / "config.json").write_text(json.dumps({"vocab_size": 3, **fields}))
    write_folder([("a", torch.ones(2))], tmp_path / "out", like=like, dtype=torch.float16)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"vocab_size": 3, key: "float16"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_values_that_are_not_finite_in_the_dtype_are_refused(tmp_path: Path, value: float) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = [("bad", torch.tensor([1.0, value]))]
    with pytest.raises(ConfigError, match=r"bad holds values .* finite in torch\.float16"):
        write_folder(tensors, tmp_path / "out", like=tmp_path, dtype=torch.float16)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    like, target = tmp_path / "like", tmp_path / "out"
    like.mkdir()
    (like / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="finite"), whole_or_absent(target) as staging:
        write_folder([("bad", torch.tensor([math.nan]))], staging, like=like, dtype=torch.float32)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match="No space left"), whole_or_absent(target):
        raise full
    assert list(tmp_path.iterdir()) == [like]
    target.mkdir()
    with whole_or_absent(target) as staging:
        (staging / "whole").touch()
    assert [file.name for file in target.iterdir()] == ["whole"]
    with pytest.raises(ConfigError, match="not an empty folder"), whole_or_absent(target):
        pass
    assert sorted(tmp_path.iterdir()) == [like, target]
