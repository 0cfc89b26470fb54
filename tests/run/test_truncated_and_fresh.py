"""Runs on fresh mazes whose truncated responses are masked or 0: resumed, and split over ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_end_to_end import metrics, train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

OPTIONS = """
    --data.maze.fresh --data.maze.train-sizes 7 --data.maze.test-sizes 7
    --rollout.max-response-tokens 6 --loss.kl-coef 0.01 --warm-start.steps 40
    --algorithm.skip-zero-advantage auto --checkpoint.every 2 --eval.every 2
""".split()


def records(folder: Path, cache: Path, steps: str, *options: str) -> list[dict[str, Any]]:
    done = train(folder, cache, *OPTIONS, "--steps", steps, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return [record for record in metrics(folder) if record["step"]]


def test_masked_responses_are_not_trained_and_fresh_mazes_resume(tmp_path: Path) -> None:
    mask = ("--rollout.truncated", "mask", "--nproc", "1")
    whole = records(tmp_path / "whole", tmp_path, "4", *mask)
    records(tmp_path / "resumed", tmp_path, "2", *mask)
    assert records(tmp_path / "resumed", tmp_path, "4", *mask) == whole
    assert any(0 < record["truncated_share"] < 1 for record in whole)
    for record in whole:
        cut = record["truncated_share"] * 32  # of 4 prompts x 8 responses, 6 tokens each
        # with a KL term every other response is trained on, whatever its advantage
        assert record["trained_tokens"] == pytest.approx(record["response_tokens"] - 6 * cut)
    samples = [json.loads(line) for line in _samples(tmp_path / "whole")]
    assert all(sample["id"].startswith("maze-fresh-7-") for sample in samples)
    assert {s["reward"] for s in samples if not s["finished"]} <= {0.0}


def _samples(folder: Path) -> list[str]:
    files = sorted((folder / "samples").iterdir())
    return [line for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("truncated", ["zero", "mask"])
def test_dedicated_ranks_give_the_colocated_records(truncated: str, tmp_path: Path) -> None:
    """The rollout server knows the setting too."""
    ahead = "--rollout.max-off-policy-steps 1 --loss.tis-clip 2 --rollout.no-sleep".split()
    options = ["--rollout.truncated", truncated, *ahead]
    alone = records(tmp_path / "one", tmp_path, "2", *options, "--nproc", "1")
    apart = records(
        tmp_path / "two", tmp_path, "2", *options, "--nproc", "2", "--rollout.dedicated-ranks", "1"
    )
    keys = ("reward", "truncated_share", "trained_tokens", "effective_batch")
    assert [[r[key] for key in keys] for r in alone] == [[r[key] for key in keys] for r in apart]
