"""Hugging Face folders in and out of a mesh, all architectures, without Megatron."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from passk_fast.errors import ConfigError
from passk_fast.weights.hf import HFReader
from passk_fast.weights.megatron import Layout, load
from passk_fast.weights.mesh import TrainerMesh
from passk_fast.weights.placement import Tensors
from tests.ranks import RankPool
from tests.weights.shapes import Chunk, full_weights, model_shape

W = "tests.weights.workers:"


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    """A world of four."""
    with RankPool(4) as pool:
        yield pool


def make_folder(root: Path, architecture: str, **changes: Any) -> str:
    """A folder with distinct numbers for weights."""
    tensors = Tensors.of(model_shape(architecture, **changes))
    full = {name: weight.float() for name, weight in full_weights(tensors).items()}
    save_file(full, root / "model.safetensors")
    return str(root)


@pytest.mark.parametrize(
    ("architecture", "mesh", "tied"),
    [
        ("qwen2", {"tensor": 2, "pipeline": 2}, True),
        ("qwen3", {"pipeline": 2, "virtual": 2}, False),
        ("llama", {"tensor": 4}, False),
        ("qwen3_moe", {"tensor": 2, "expert": 4}, False),
        ("mixtral", {"pipeline": 2, "expert": 2}, False),
    ],
)
def test_a_folder_comes_back_as_it_was(
    four: RankPool, tmp_path: Path, architecture: str, mesh: dict[str, Any], tied: bool
) -> None:
    folder = make_folder(tmp_path, architecture, tied=tied)
    four.run(W + "round_trip", architecture, folder, {"world": 4, **mesh}, tied)


def load_small(folder: str, architecture: str, **changes: Any) -> None:
    layout = Layout.of(model_shape(architecture, **changes), TrainerMesh(world=1), 0)
    load([Chunk(layout)], HFReader(folder), layout)


def test_shapes_that_disagree_with_the_configuration_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "llama", ffn_width=12)
    with pytest.raises(ConfigError, match=r"gate_proj.weight has shape \(12, 8\); config.json"):
        load_small(folder, "llama")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "llama")
    with pytest.raises(ConfigError, match=r"has no tensor '.*q_norm.weight'"):
        load_small(folder, "qwen3")


def test_a_parameter_that_the_table_does_not_know_is_named(tmp_path: Path) -> None:
    layout = Layout.of(model_shape("qwen3"), TrainerMesh(world=1), 0)
    chunk = Chunk(layout)
    chunk.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match=r"only in the model: \['extra'\]"):
        load([chunk], HFReader(make_folder(tmp_path, "qwen3")), layout)
