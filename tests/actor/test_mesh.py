"""Megatron's groups over torch's: ranks of every axis, and groups that end with the mesh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from passk_fast.config import ParallelConfig
from tests.ranks import RankError, RankPool

pytestmark = pytest.mark.megatron

AXES = ("tensor", "context", "data", "pipeline")


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(4) as ranks:
        yield ranks


def places(settings: dict[str, int]) -> dict[str, Any]:
    """On a rank: its place on every axis, the ranks of each group, and the groups left after."""
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    before = number_of_groups()
    mesh = make_mesh(ParallelConfig(**settings), "cpu")
    found = {
        "rank": mesh.rank,
        "device": str(mesh.torch_device),
        "is_last_stage": mesh.is_last_stage,
        "ranks": {axis: getattr(mesh, f"{axis}_rank") for axis in AXES},
        "sizes": {axis: getattr(mesh, f"{axis}_size") for axis in AXES},
        "groups": {
            axis: dist.get_process_group_ranks(getattr(mesh, f"{axis}_group")) for axis in AXES
        },
    }
    drop_mesh()
    return {**found, "left": number_of_groups() - before}


def number_of_groups() -> int:
    """Process groups that torch holds; each gloo group has threads."""
    return len(dist.distributed_c10d._world.pg_map)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tensor": 2},
        {"pipeline": 2},
        {"context": 2},
        {"tensor": 2, "pipeline": 2},
        {"tensor": 4},
    ],
)
def test_the_order_of_axes_and_their_groups(pool: RankPool, settings: dict[str, int]) -> None:
    found = pool.run(f"{__name__}:places", settings)
    sizes = {axis: settings.get(axis, 1) for axis in AXES}
    sizes["data"] = 4 // (sizes["tensor"] * sizes["context"] * sizes["pipeline"])
    for rank, place in enumerate(found):
        assert (place["rank"], place["device"]) == (rank, "cpu")
        assert place["sizes"] == sizes
        rest = rank
        for axis in AXES:  # tensor is the fastest
            rest, wanted = divmod(rest, sizes[axis])
            assert place["ranks"][axis] == wanted
            group = place["groups"][axis]
            assert len(group) == sizes[axis]
            assert group[wanted] == rank
            assert all(found[other]["groups"][axis] == group for other in group)
        assert place["is_last_stage"] == (place["ranks"]["pipeline"] == sizes["pipeline"] - 1)


def test_no_group_outlives_the_mesh(pool: RankPool) -> None:
    for _ in range(2):
        assert {place["left"] for place in pool.run(f"{__name__}:places", {"tensor": 2})} == {0}


def test_a_mesh_that_does_not_fit_is_refused(pool: RankPool) -> None:
    with pytest.raises(RankError, match=r"ConfigError: .*parallel\.tensor"):
        pool.run(f"{__name__}:places", {"tensor": 8})
