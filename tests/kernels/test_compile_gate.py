"""Every kernel compiles for sm_90a without spills, within shared memory, with what it claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.sample
def test_compile_gate(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    report = tmp_path / "gate.json"
    environment = {key: v for key, v in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "passk_fast.kernels.triton.compile_gate", "--json", str(report)],
        cwd=ROOT,
        env={**environment, "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = {row["name"]: row for row in json.loads(report.read_text())["kernels"]}
    assert len(rows) >= 20
    for name in ("K1 first GEMM", "K3 first GEMM", "K1 dX", "K1 dW"):
        assert rows[name]["hgmma"] > 0
        assert rows[name]["tma_loads"] > 0
    assert rows["K1 first GEMM"]["warps"] == 12  # a producer and two consumer warp groups
