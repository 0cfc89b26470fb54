"""mypy under the project's configuration knows torch, numpy and our own types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A line that ends in a comment must be an error of that code, and no other line one.
PROGRAM = """\
from __future__ import annotations
import numpy as np
import torch
from torch import nn
from passk_fast.advantage import table
from passk_fast.config import RunConfig
from passk_fast.data.types import PackedBatch
from passk_fast.kernels import PolicyLoss

torch.zeros(1).no_such_method()  # attr-defined
torch.zeros(1).sum().backward()
torch.no_such_function()  # attr-defined
number: int = torch.zeros(1)  # assignment
torch.zeros(1, no_such_option=1)  # call-overload
nn.Linear(1, 2).no_such_method()  # operator
np.zeros(3).no_such_method()  # attr-defined
table("grpo", 4, 1).no_such_method()  # attr-defined
table("grpo", "4", 1)  # arg-type
PolicyLoss(no_such_option=1.0)  # call-arg

def untyped(x):  # no-untyped-def
    return x

def half_typed(x: int, y) -> int:  # no-untyped-def
    return x

def lost(batch: PackedBatch, config: RunConfig) -> int:
    return batch.tokens_T  # return-value

def field(batch: PackedBatch, config: RunConfig) -> torch.Tensor:
    config.no_such_field  # attr-defined
    return batch.tokens_T + config.optim.lr

def bare(values: list) -> None:  # type-arg
    untyped(values)  # no-untyped-call
"""


def test_mistakes_are_errors_and_nothing_else_is(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    found = {
        int(line): code
        for line, code in re.findall(r"program\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    }
    wanted = {
        number: line.rpartition("  # ")[2]
        for number, line in enumerate(PROGRAM.splitlines(), start=1)
        if "  # " in line
    }
    assert found == wanted, done.stdout + done.stderr
