"""The Hugging Face example learns its toy task on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_example_learns() -> None:
    path = Path(__file__).parents[2] / "examples" / "hf_kernel.py"
    spec = importlib.util.spec_from_file_location("hf_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rewards = module.main(["--steps", "20"])
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
