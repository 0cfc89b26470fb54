"""Resuming with replaced data or weights under the same path, and with the same at another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from passk_fast.config import ShapeConfig
from passk_fast.errors import ExitCode
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

CONFIG = """
prompts_per_step = 2
micro_batch_tokens = 1024
[rollout]
max_prompt_tokens = 16
max_response_tokens = 8
kv_cache_gib = 0.25
[algorithm]
estimator = "grpo"
num_rollouts = 4
k = 1
[loss]
kl_coef = 0.1
[eval]
every = 0
num_prompts = 2
num_rollouts = 2
"""


def test_other_inputs_are_refused_and_moved_ones_are_not(tmp_path: Path) -> None:
    shape = ShapeConfig(num_layers=2, hidden_size=64, num_heads=2, num_kv_heads=1)
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    make_tiny_model(shape, character_tokenizer("0123456789+="), 0, model)
    lines = [
        json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1), "task": "exact"}) for i in range(8)
    ]
    rows.write_text("\n".join(lines) + "\n")
    (tmp_path / "c.toml").write_text(CONFIG)

    def train(
        steps: int, model: Path = model, rows: Path = rows
    ) -> subprocess.CompletedProcess[str]:
        flags = ["--output-dir", str(tmp_path / "run"), "--nproc", "1", "--steps", str(steps)]
        inputs = ["--model.path", str(model), "--data.train", str(rows)]
        command = [sys.executable, "-m", "passk_fast", "train", str(tmp_path / "c.toml")]
        return subprocess.run(
            [*command, *flags, *inputs], capture_output=True, text=True, check=False
        )

    done = train(1)
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr

    rows.write_text("\n".join(lines[::-1]) + "\n")
    done = train(2)
    assert done.returncode == ExitCode.BAD_DATA, done.stdout + done.stderr
    assert "data.train holds its 8 rows in another order" in done.stderr
    rows.write_text("\n".join(lines) + "\n")

    weights = model / "model.safetensors"
    kept = weights.read_bytes()
    save_file({name: w + 0.05 for name, w in load_file(weights).items()}, weights)
    done = train(2)
    assert done.returncode == ExitCode.BAD_CONFIG, done.stdout + done.stderr
    assert "has another content than when this run began, in model.safetensors" in done.stderr
    weights.write_bytes(kept)

    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    done = train(2, elsewhere, shutil.copy(rows, tmp_path / "moved.jsonl"))
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert "Resuming from step 1" in done.stdout
