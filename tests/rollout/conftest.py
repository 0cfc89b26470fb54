"""Two small models with peaked distributions, and two ranks that keep one engine at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from passk_fast.config import ShapeConfig
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
from tests.ranks import RankPool

ALPHABET = "abcdefgh\n "


def _model(folder: Path, seed: int, *, tied: bool = False) -> str:
    """A random model whose untied logits have a standard deviation near 1.6 instead of 0.16."""
    shape = ShapeConfig(
        num_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        tie_embeddings=tied,
    )
    make_tiny_model(shape, character_tokenizer(ALPHABET), seed, folder)
    if not tied:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] *= 10.0
        save_file(tensors, file, metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def model_a(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _model(tmp_path_factory.mktemp("model-a"), seed=1)


@pytest.fixture(scope="session")
def model_b(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _model(tmp_path_factory.mktemp("model-b"), seed=2)


@pytest.fixture(scope="session")
def tied_a(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _model(tmp_path_factory.mktemp("tied-a"), seed=1, tied=True)


@pytest.fixture(scope="session")
def tied_b(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _model(tmp_path_factory.mktemp("tied-b"), seed=2, tied=True)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks
