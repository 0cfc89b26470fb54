"""A run whose checkpoints are damaged or lost stops, and goes on as the command line says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from passk_fast.errors import ExitCode
from tests.run.test_end_to_end import metrics, train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]


def test_damaged_and_lost_checkpoints_end_a_run_until_it_is_told_how_to_go_on(
    tmp_path: Path,
) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    done = train(folder, cache, "--steps", "4")
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    whole = metrics(folder)
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "kept")
    state = json.loads((checkpoints / "step_00000004" / "state.json").read_text())
    assert state["gradient_norms"] == [record["grad_norm"] for record in whole[1:]]
    for step in (2, 4):
        (checkpoints / f"step_{step:08d}" / "state.json").write_text("{")

    for more in ([], ["--dry-run"], ["--resume", "2"]):
        done = train(folder, cache, "--steps", "5", *more)
        assert done.returncode == ExitCode.BAD_DATA, done.stdout + done.stderr
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "step_00000002/state.json has 1 bytes" in said
        assert ("step_00000004/state.json has 1 bytes" in said) == ("--resume" not in more)
        assert "--fresh" in said
        assert "Traceback" not in done.stdout + done.stderr
    assert metrics(folder) == whole

    shutil.copy(tmp_path / "kept/step_00000002/state.json", checkpoints / "step_00000002")
    done = train(folder, cache, "--steps", "4", "--resume", "2")
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert "Resuming from step 2" in done.stdout
    assert metrics(folder) == whole
    assert (checkpoints / "abandoned-step_00000004" / "state.json").read_text() == "{"
    assert (checkpoints / "LATEST").read_text() == "step_00000004\n"

    shutil.rmtree(checkpoints)
    done = train(folder, cache, "--steps", "4")
    assert done.returncode == ExitCode.BAD_CONFIG, done.stdout + done.stderr
    assert "metrics.jsonl records this run up to step 4" in done.stderr
    done = train(folder, cache, "--steps", "2", "--fresh")
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr
    assert metrics(folder / "abandoned-1") == whole
    assert metrics(folder) == whole[:3]
