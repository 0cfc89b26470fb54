"""Rank pools and model folders that the actor tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actor.workers import make_folder
from tests.ranks import RankPool


@pytest.fixture(scope="package")
def one_rank() -> Iterator[RankPool]:
    """A world of one."""
    with RankPool(1) as pool:
        yield pool


@pytest.fixture(scope="package")
def two_ranks() -> Iterator[RankPool]:
    """A world of two."""
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny random model folder of every architecture."""
    root: Path = tmp_path_factory.mktemp("models")
    made = {}
    for kind in ("qwen2", "qwen3", "llama", "gemma2", "qwen3_moe", "qwen3_moe_raw", "mixtral"):
        made[kind] = str(root / kind)
        make_folder(kind, made[kind])
    return made
