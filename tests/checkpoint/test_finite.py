"""NaN and inf in what a checkpoint would hold are found, on whichever rank they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from passk_fast.actor.finite import names_not_finite
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron
RUN = "tests.checkpoint.workers:found_not_finite"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_enough(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max  # finite, and so is no sum of two
    good = torch.full((3, 1000), largest, dtype=dtype)
    worse = good.clone()
    worse[2, 777] = bad
    assert names_not_finite([("a", good), ("b", torch.zeros(0)), ("c", -good)]) == []
    assert names_not_finite([("a", good), ("b", worse), ("c", worse.mT)]) == ["b", "c"]
    assert names_not_finite([]) == []


@pytest.mark.parametrize(
    ("kind", "dtype", "mesh", "bad"),
    [
        ("qwen3", "float32", {}, math.nan),
        ("qwen3", "bfloat16", {"tensor": 2}, math.inf),
        ("qwen3", "bfloat16", {"pipeline": 2}, math.nan),
        ("qwen3", "bfloat16", {"distributed_optimizer": False}, math.nan),
        ("qwen3", "float32", {"distributed_optimizer": False}, math.inf),
        ("qwen3_moe", "bfloat16", {"expert": 2}, math.nan),
    ],
    ids=["dp2", "tp2", "pp2", "dp2 whole", "dp2 whole float32", "ep2"],
)
def test_it_is_found_on_one_rank_and_all_ranks_agree(
    two_ranks: RankPool,
    folders: dict[str, str],
    kind: str,
    dtype: str,
    mesh: dict[str, Any],
    bad: float,
) -> None:
    for found in two_ranks.run(RUN, kind, folders[kind], dtype, mesh, bad):
        kinds = 3 if dtype == "float32" else 4  # a float32 model is its own main weights
        assert len(found) == 1 + 2 * kinds
        for name, want, said in found:
            assert said.startswith(want), name
            assert bool(said) == bool(want), name
