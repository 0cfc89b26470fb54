"""`make real`, shortened: the recipe on a tiny model of a GGUF file, and on the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from passk_fast.commands.import_gguf import import_gguf
from passk_fast.report.records import read_records
from tests.gguf_files import tiny_model, write_gguf

ROOT = Path(__file__).parents[1]
SHORT = (
    *("--steps", "2", "--prompts-per-step", "2", "--algorithm.num-rollouts", "4"),
    *("--eval.num-prompts", "2", "--eval.num-rollouts", "4", "--rollout.max-response-tokens", "6"),
    *("--rollout.kv-cache-gib", "0.25", "--checkpoint.every", "0", "--algorithm.k", "2"),
)


def _recipe(run: Path, **environment: str) -> str:
    """What scripts/real.sh prints."""
    commands = run.parent / "venv" / "bin"
    commands.mkdir(parents=True)
    for name, what in (("python", ""), ("passk-fast", " -m passk_fast")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{what} "$@"\n')
        (commands / name).chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "real.sh"), *SHORT],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PASSK_VENV": str(commands.parent),
            "REAL_RUN": str(run),
            "REAL_HALF": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _check(run: Path, output: str) -> None:
    """It trained one step, went on from it, evaluated, converted, and the result was asked."""
    records = read_records(run / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert [bool(record.get("eval")) for record in records] == [True, True, True]
    assert "Resuming from step 1" in output
    assert (run / "huggingface" / "model.safetensors").is_file()
    assert "Greedy answers by transformers, before and after:\n  8+11: '" in output


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.megatron
def test_the_recipe_with_a_tiny_model(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "tiny.gguf", tiny_model("llama"), fields={"llama.context_length": 256}
    )
    model = import_gguf(file, tmp_path / "model", dtype="bfloat16")
    run = tmp_path / "run"
    _check(run, _recipe(run, REAL_MODEL=str(model)))


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_recipe_with_the_real_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = _recipe(run, REAL_MODEL=str(tmp_path / "SmolLM2"))
    _check(run, output)
    assert f"Wrote {tmp_path / 'SmolLM2'}" in output
