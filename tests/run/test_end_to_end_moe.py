"""A mixture of experts from the command line: trained over EP, sampled over TP, resumed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.run.test_end_to_end import SMALL, call, metrics

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

CONFIG = Path(__file__).parents[2] / "configs" / "maze_moe_cpu.toml"
MOVING = "--loss.entropy-coef 0.01 --optim.lr 1e-2".split()
"""Every batch moves the weights, so every sync has something to bring."""


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A few small steps into `folder`; the warm-started model is kept next to it."""
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(folder.parent / "cache")]
    done = call("train", str(CONFIG), *where, *SMALL, *MOVING, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_experts_from_the_command_line(tmp_path: Path) -> None:
    whole, resumed, other = tmp_path / "whole", tmp_path / "resumed", tmp_path / "other"
    mesh = "--nproc 2 --parallel.expert 2 --rollout.tensor 2".split()
    mesh += ["--algorithm.routing-replay", "replay"]
    train(whole, "--steps", "4", *mesh)
    records = metrics(whole)
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    for record in records[1:]:
        assert record["grad_norm"] > 0
        assert record["ppo_kl"] == 0.0
        # Each step's samples come from the weights of the step before: every sync was complete.
        assert 0 < record["logprob_gap_max"] <= 1e-4
        assert record["routing_differs"] <= 1e-4  # in float32 both sides choose alike, but for ties
        assert 1 <= record["expert_imbalance"] <= record["expert_imbalance_max"] <= 4

    for steps in ("2", "4"):
        train(resumed, "--steps", steps, *mesh)
        if steps == "2":
            shutil.copytree(resumed, other)
    # The prompts of an evaluation are still cached in the engine that goes on.
    for record in (*(again := metrics(resumed)), *records):
        record.pop("prefix_hit_rate", None)
    assert again == records

    # The trainer of another mesh goes on from the same checkpoint; its engines cut experts too.
    train(other, "--steps", "3", "--nproc", "2", "--parallel.tensor", "2", *mesh[-2:])
    got, want = metrics(other)[-1], records[3]
    for name in ("reward", "response_tokens"):
        assert got[name] == want[name]
    assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-3)
    assert got["expert_imbalance"] == pytest.approx(want["expert_imbalance"], rel=1e-3)

    converted = call("convert", str(whole), str(tmp_path / "hf"))
    assert converted.returncode == 0, converted.stderr
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert model.config.model_type == "qwen3_moe"
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
