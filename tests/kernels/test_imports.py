"""`passk_fast.kernels` stands alone: torch and, where it is installed, Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from passk_fast import kernels

x, w = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
ones = torch.ones(3)
loss, metrics = kernels.linear_policy_loss(
    x, w, torch.tensor([0, 4, 2]), None, ones, ones.bool(), denominator=3.0
)
loss.backward()
assert metrics["backend"] == "torch", metrics["backend"]
assert x.grad.abs().sum() > 0
others = {name.split(".")[0] for name in sys.modules}
assert not others & {"megatron", "vllm", "transformers", "tyro"}, others
ours = {name for name in sys.modules if name.startswith("passk_fast.")}
assert all(name.startswith("passk_fast.kernels") for name in ours), ours
"""


def test_needs_torch_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
