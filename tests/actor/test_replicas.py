"""A weight that differs between replicas is found, by rank and name, on every rank."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

CHECKED = "tests.actor.replica_workers:checked"
NAMES = ["word_embeddings", "layers.1.mlp.linear_fc2", "final_layernorm"]


@pytest.mark.parametrize("parallel", [{}, {"context": 2}, {"distributed_optimizer": False}])
@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_found(
    two_ranks: RankPool, folders: dict[str, str], name: str, parallel: dict[str, Any]
) -> None:
    for said in two_ranks.run(CHECKED, "qwen3", folders["qwen3"], parallel, {1: name}):
        assert said.startswith("The weights of rank 1 are not those of their replicas")


def test_equal_replicas_and_ranks_without_replicas_pass(
    two_ranks: RankPool, folders: dict[str, str]
) -> None:
    folder = folders["qwen3"]
    assert two_ranks.run(CHECKED, "qwen3", folder, {}, {}) == ["", ""]
    alone = {"tensor": 2}
    assert two_ranks.run(CHECKED, "qwen3", folder, alone, {1: "linear_fc2"}) == ["", ""]
