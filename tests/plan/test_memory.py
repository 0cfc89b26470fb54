"""The plan's bytes against what Megatron allocates on a CPU, and what autograd saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from passk_fast.plan.facts import Facts
from passk_fast.plan.memory import chunk_bytes, in_flight
from passk_fast.plan.worker import Prober
from tests.plan.workers import hf_config, run_config
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.plan.workers"
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    with Prober() as worker:
        yield worker


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


def plan(prober: Prober, tmp_path: Path, kind: str, dtype: str, parallel: dict[str, Any]) -> Facts:
    hf_config(kind).save_pretrained(tmp_path)
    return prober.facts(run_config(dtype, parallel), tmp_path, 2, logits=False)


@pytest.mark.parametrize(
    ("kind", "dtype", "parallel"),
    [
        pytest.param("dense", "bfloat16", {"tensor": 2}, id="tp2"),
        pytest.param("tied", "bfloat16", {"pipeline": 2}, id="pp2-tied"),
        pytest.param(
            "dense",
            "bfloat16",
            {"pipeline": 2, "virtual_pipeline": 2},
            id="pp2-interleaved",
            marks=pytest.mark.slow,
        ),
        pytest.param("dense", "bfloat16", {}, id="dp2"),
        pytest.param(
            "dense",
            "bfloat16",
            {"distributed_optimizer": False},
            id="dp2-replicated",
            marks=pytest.mark.slow,
        ),
        pytest.param("dense", "float32", {}, id="dp2-float32", marks=pytest.mark.slow),
        pytest.param("moe", "bfloat16", {"expert": 2}, id="ep2", marks=pytest.mark.slow),
        pytest.param("moe", "bfloat16", {"tensor": 2, "expert": 2}, id="tp2-ep2"),
    ],
)
def test_what_is_held_between_steps(
    prober: Prober,
    two_ranks: RankPool,
    tmp_path: Path,
    kind: str,
    dtype: str,
    parallel: dict[str, Any],
) -> None:
    facts = plan(prober, tmp_path, kind, dtype, parallel)
    stages = parallel.get("pipeline", 1)
    for rank, real in enumerate(two_ranks.run(f"{W}:held", kind, dtype, parallel)):
        stage = facts.stage(rank if stages == 2 else 0, stages)
        for name, size in real.items():
            planned = getattr(stage, name)
            assert planned == pytest.approx(size, rel=TOLERANCE), f"rank {rank}: {name}"
        assert real["moments"] > 0


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_activations_are_what_autograd_saves(
    prober: Prober, two_ranks: RankPool, tmp_path: Path, dtype: str, mode: str
) -> None:
    facts = plan(prober, tmp_path, "dense", dtype, {"tensor": 2})
    planned = chunk_bytes(facts.costs[mode], 4, first=True, last=True)
    parallel = {"tensor": 2, "recompute": mode}
    for real in two_ranks.run(f"{W}:saved", "dense", dtype, parallel):
        assert planned == pytest.approx(real, rel=TOLERANCE)


def test_grouped_experts_save_what_autograd_saves(
    prober: Prober, two_ranks: RankPool, tmp_path: Path
) -> None:
    """Without expert parallelism, where routing does not change how many rows a rank has."""
    facts = plan(prober, tmp_path, "moe", "bfloat16", {"tensor": 2})
    planned = chunk_bytes(facts.costs["none"], 4, first=True, last=True)
    for real in two_ranks.run(f"{W}:saved", "moe", "bfloat16", {"tensor": 2}):
        assert planned == pytest.approx(real, rel=TOLERANCE)


def test_what_a_stage_keeps_alive() -> None:
    """1F1B: a stage starts as many micro-batches as there are stages from it to the last."""
    assert [in_flight(s, 4, 1, 100) for s in range(4)] == [4, 3, 2, 1]
    assert [in_flight(s, 4, 1, 2) for s in range(4)] == [2, 2, 2, 1]
    # Interleaved, in chunks: Megatron's (p - s - 1) 2 + (v - 1) p warm-up forwards, and one.
    assert [in_flight(s, 4, 2, 100) for s in range(4)] == [11, 9, 7, 5]
