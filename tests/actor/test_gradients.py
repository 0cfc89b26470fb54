"""A gradient that is not finite is named with its rank; an update can be bounded by its norm."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.ranks import RankPool

pytestmark = pytest.mark.megatron
W = "tests.actor.gradient_workers"
WHOLE = {"distributed_optimizer": False}


@pytest.mark.parametrize(
    ("kind", "mesh", "spoil", "bad_ranks", "number"),
    [
        ("qwen3", {}, "nan", [0], 3),
        ("qwen3", {}, "nan", [1], 5),
        ("qwen3", {}, "inf", [0, 1], 0),
        ("qwen3", WHOLE, "nan", [1], -1),
        ("qwen3", {"tensor": 2}, "nan", [1], 4),
        ("qwen3", {"pipeline": 2}, "inf", [1], 2),
        ("qwen3_moe", {"expert": 2}, "nan", [1], -3),
    ],
)
def test_the_parameter_and_the_rank_are_named(
    two_ranks: RankPool,
    folders: dict[str, str],
    kind: str,
    mesh: dict[str, Any],
    spoil: str,
    bad_ranks: list[int],
    number: int,
) -> None:
    where = (kind, folders[kind], mesh, spoil, bad_ranks, number)
    for said, want, applied, change in two_ranks.run(f"{W}:located", *where):
        assert said == want
        assert not applied
        assert change == 0.0


@pytest.mark.parametrize("mesh", [{}, WHOLE], ids=["sharded", "whole"])
def test_gradients_that_are_infinite_only_when_added_up_are_named(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    where = ("qwen3", folders["qwen3"], mesh, "huge", [0, 1], 2)
    for said, want, applied, change in two_ranks.run(f"{W}:located", *where):
        parameter = want.removesuffix(" on rank 0")
        assert re.fullmatch(rf"{re.escape(parameter)} on rank \d, over all ranks,", said)
        assert not applied
        assert change == 0.0


def test_of_many_parameters_the_first_and_the_last_are_named(
    two_ranks: RankPool, folders: dict[str, str]
) -> None:
    for said in two_ranks.run(f"{W}:nan_loss", "qwen3", folders["qwen3"], 1):
        pattern = (
            r"the gradient of embedding\.\S+ \(\d+ parameters in all, the last is decoder\.\S+"
        )
        assert re.match(pattern, said)
        assert said.endswith(") on rank 1")


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("qwen3", {}),
        ("qwen3", WHOLE),
        ("qwen3", {"tensor": 2}),
        ("qwen3", {"pipeline": 2}),
        ("qwen3_moe", {"expert": 2}),
    ],
    ids=["dp2", "dp2 whole", "tp2", "pp2", "ep2"],
)
def test_an_update_is_skipped_above_the_largest_norm(
    two_ranks: RankPool, folders: dict[str, str], kind: str, mesh: dict[str, Any]
) -> None:
    for holds in two_ranks.run(f"{W}:limited", kind, folders[kind], mesh):
        assert all(holds.values()), holds
