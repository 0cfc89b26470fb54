"""The executor over gloo: random meshes, other dtypes, damage that is found, ranks that die."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from passk_fast.model.families import FAMILIES
from tests.ranks import RankError, RankPool

W = "tests.weights.workers:"


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    """A world of four."""
    with RankPool(4) as pool:
        yield pool


MESHES = [
    ("qwen2", {"world": 4, "tensor": 2}, {"world": 4, "tensor": 2}),
    ("qwen2", {"world": 4, "tensor": 2, "pipeline": 2}, {"world": 4, "tensor": 4}),
    ("llama", {"world": 4, "pipeline": 2, "virtual": 2}, {"world": 4}),
    ("qwen3", {"world": 4, "pipeline": 4}, {"world": 4, "tensor": 2}),
    ("qwen3_moe", {"world": 4, "tensor": 2, "expert": 4}, {"world": 4, "tensor": 2}),
    ("mixtral", {"world": 4, "expert": 2}, {"world": 4, "tensor": 2, "expert": True}),
    ("qwen3", {"world": 2, "tensor": 2}, {"world": 2, "tensor": 2, "first_rank": 2}),
]


@pytest.mark.parametrize(("round_bytes", "alone"), [(96, 1 << 16), (1 << 20, 1 << 16), (700, 8)])
@pytest.mark.parametrize(("family", "trainer", "rollout"), MESHES)
def test_weights_arrive_where_the_table_says(
    four: RankPool,
    family: str,
    trainer: dict[str, Any],
    rollout: dict[str, Any],
    round_bytes: int,
    alone: int,
) -> None:
    got = four.run(W + "exchange", family, trainer, rollout, round_bytes, alone=alone)
    assert got == [""] * 4


@pytest.mark.parametrize("seed", range(12))
def test_random_meshes(four: RankPool, seed: int) -> None:
    """Four ranks in all, trainer and engine on any of them, over any rounds."""
    rng = random.Random(seed)
    family = rng.choice(sorted(FAMILIES))
    trainer = {"world": rng.choice([2, 4])}
    trainer["tensor"] = rng.choice([1, 2])
    trainer["pipeline"] = rng.choice(
        [n for n in (1, 2) if n * trainer["tensor"] <= trainer["world"]]
    )
    within = trainer["world"] // trainer["pipeline"]
    trainer["virtual"] = rng.choice([1, 2]) if trainer["pipeline"] == 2 else 1
    trainer["expert"] = rng.choice([n for n in (1, 2, 4) if within % n == 0])
    trainer["first_rank"] = rng.randrange(5 - trainer["world"])
    rollout: dict[str, Any] = {"world": rng.choice([1, 2, 4])}
    rollout["tensor"] = rng.choice([n for n in (1, 2, 4) if rollout["world"] % n == 0])
    rollout["expert"] = rng.random() < 0.5
    rollout["first_rank"] = rng.randrange(5 - rollout["world"])
    round_bytes, alone = 2 ** rng.randrange(5, 16), 2 ** rng.randrange(3, 9)
    got = four.run(W + "exchange", family, trainer, rollout, round_bytes, alone=alone)
    assert got == [""] * 4


def test_weights_are_cast_on_the_way(four: RankPool) -> None:
    mesh = {"world": 4, "tensor": 2, "pipeline": 2}
    rollout = {"world": 4, "tensor": 2}
    got = four.run(W + "exchange", "qwen3", mesh, rollout, 512, dtype="bfloat16", alone=16)
    assert got == [""] * 4


@pytest.mark.parametrize("damage", ["one bit", "rows swapped", "never arrived"])
def test_damage_is_named_on_every_rank(four: RankPool, damage: str) -> None:
    mesh, rollout = {"world": 4, "pipeline": 2}, {"world": 4, "tensor": 2}
    for text in four.run(W + "exchange", "qwen3", mesh, rollout, 4096, damage, alone=32):
        assert "model.layers.1.self_attn.o_proj.weight" in text
        assert "on rank 3, from rank" in text


def test_a_rank_that_dies_is_named() -> None:
    with RankPool(2) as pool, pytest.raises(RankError) as caught:
        pool.run(W + "dies", 4096, timeout_s=60.0)
    assert "LostRankError: Rank 0: weights" in str(caught.value)
    assert "from rank 1" in str(caught.value)
