"""The kernel benchmark in its small CPU mode: every column is filled, absent peers are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it."""
    command = [sys.executable, "benchmarks/kernels.py", "--out", str(out), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_small_mode(tmp_path: Path) -> None:
    out, picture = tmp_path / "kernels.json", tmp_path / "kernels.png"
    done = run(
        out, "--small", "--warm", "1", "--timed", "5", "--only", "ours", "torch", "QuACK",
        "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text())
    assert report["claims"] is False
    assert report["not_reached"] == []
    assert report["device"].startswith("CPU (")
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert set(report["absent"]) >= {"QuACK linear CE"}
    assert "absent: QuACK linear CE" in done.stdout
    rows = {(r["kind"], r["regime"], r["provider"]): r for r in report["rows"]}
    for regime in ("dense", "rl", "on-policy"):
        for provider in ("ours, fused", "torch, whole logits"):
            row = rows["head", regime, provider]
            assert row["time_ms"]["p20"] <= row["time_ms"]["median"] <= row["time_ms"]["p80"]
            floor = row["floor_ms"] / row["time_ms"]["median"]
            assert row["fraction_of_floor"] == pytest.approx(floor)
            errors = row["errors"]
            assert errors["logp_max"] <= 5e-6
            assert max(errors["dhidden_relative"], errors["dweight_relative"]) <= 3e-6
            assert errors["idle_rows_zero"]
    assert rows["head", "rl", "torch, whole logits, informative rows"]["informative_fraction"] < 0.9
    assert rows["head", "rl", "ours, fused"]["errors"]["bitwise_repeat"]
    assert rows["logprob", "dense", "ours, fused"]["errors"]["entropy_max"] <= 1e-4
    assert rows["logits", "dense", "ours"]["errors"]["dlogits_relative"] <= 2e-6
    if picture.exists():
        assert picture.stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_size_needs_a_gpu(tmp_path: Path) -> None:
    done = run(tmp_path / "kernels.json")
    assert done.returncode == 2
    assert "--small" in done.stderr
