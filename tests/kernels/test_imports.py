"""`passk_fast.kernels` needs torch and, where it is installed, Triton; its options need neither."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.modules["triton"] = None  # as if it were not installed
sys.modules["jaxtyping"] = None
import torch
from passk_fast import kernels

x, w = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
ones = torch.ones(3)
rows = kernels.LossRows(
    targets=torch.tensor([0, 4, 2]), advantages=ones, mask=ones.bool(), denominator=3.0
)
loss, report = kernels.linear_policy_loss(kernels.OutputHead(hidden=x, weight=w), rows)
loss.backward()
assert report.backend == "torch", report.backend
assert x.grad.abs().sum() > 0
others = {name.split(".")[0] for name in sys.modules}
assert not others & {"megatron", "vllm", "transformers", "tyro"}, others
ours = {name for name in sys.modules if name.startswith("passk_fast.")}
assert all(name.startswith("passk_fast.kernels") for name in ours), ours
"""


OPTIONS = """
import sys
from passk_fast.config import RunConfig
from passk_fast.kernels.options import PolicyLoss

assert isinstance(RunConfig().loss, PolicyLoss)
heavy = {"torch", "numpy", "jaxtyping", "triton"} & set(sys.modules)
assert not heavy, heavy
"""

NAMES = """
from passk_fast import kernels

for name in kernels.__all__:
    assert getattr(kernels, name) is not None, name
try:
    kernels.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("a name that is not there was found")
"""


@pytest.mark.parametrize("script", [SCRIPT, OPTIONS, NAMES], ids=["kernels", "options", "names"])
def test_what_an_import_needs(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
