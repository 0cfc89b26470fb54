"""Routing replay from the command line: what sampling chose reaches the trainer every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.test_end_to_end import metrics
from tests.run.test_end_to_end_moe import train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

MESH = "--nproc 2 --steps 3 --parallel.tensor 2 --parallel.expert 2 --share-prompts".split()


def comparable(folder: Path) -> list[dict[str, Any]]:
    """A run's records without the prefix cache's hit rate.

    Where nothing is replayed, partial_block_sharing.py copies the ends of prompts, which count.
    """
    records = metrics(folder)
    for record in records[1:]:
        del record["prefix_hit_rate"]
    return records


def test_replayed_experts_are_the_trainers_own(tmp_path: Path) -> None:
    """In float32 with weights just synced both sides choose alike, so replaying changes nothing."""
    train(tmp_path / "run", *MESH, "--algorithm.routing-replay", "replay")
    records = metrics(tmp_path / "run")[1:]
    assert len(records) == 3
    for record in records:
        assert record["trained_tokens"] > 0
        assert record["routing_differs"] <= 1e-4  # but for ties
        assert record["logprob_gap_max"] <= 1e-4
        assert record["ppo_kl"] == 0.0


def test_a_run_that_replays_equals_one_that_does_not(tmp_path: Path) -> None:
    found = []
    for mode in ("off", "measure", "replay"):
        train(tmp_path / mode, *MESH, "--algorithm.routing-replay", mode)
        found.append(comparable(tmp_path / mode))
    off, measured, replayed = found
    assert [record.pop("routing_differs") for record in replayed[1:]] == [0.0] * 3
    assert [record.pop("routing_differs") for record in measured[1:]] == [0.0] * 3
    assert off == measured == replayed


def test_with_dynamic_sampling_every_round_is_replayed(tmp_path: Path) -> None:
    """Most groups of a hardly trained model are all wrong; replaying still changes nothing."""
    options = """
        --nproc 2 --steps 3 --parallel.expert 2 --rollout.dynamic-sampling 3 --rollout.early-stop
        --algorithm.loss-denominator informative_tokens --loss.entropy-coef 0
        --warm-start.steps 60
    """.split()
    found = []
    for mode in ("off", "replay"):
        train(tmp_path / mode, *options, "--algorithm.routing-replay", mode)
        found.append(comparable(tmp_path / mode))
    off, replayed = found
    assert any(r["sampling_rounds"] > 1 and r["trained_tokens"] > 0 for r in replayed[1:])
    assert max(record.pop("routing_differs") for record in replayed[1:]) <= 1e-4
    assert off == replayed


def test_samples_of_older_weights_differ(tmp_path: Path) -> None:
    """Off-policy by one step, the trainer's own choice is another one for some tokens."""
    ahead = "--rollout.max-off-policy-steps 1 --loss.tis-clip 2 --rollout.no-sleep".split()
    steps = "--steps 4 --nproc 2 --eval.every 0 --checkpoint.every 0".split()
    train(tmp_path / "run", *steps, *ahead, "--algorithm.routing-replay", "replay")
    records = metrics(tmp_path / "run")[1:]
    assert records[0]["routing_differs"] <= 1e-4
    off_policy = [record for record in records if record["off_policy_steps"]]
    assert off_policy
    assert all(0.001 < record["routing_differs"] < 0.9 for record in off_policy)
