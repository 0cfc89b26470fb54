"""The device that is taken, and the process group of one process or of torchrun's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from passk_fast.errors import ConfigError
from passk_fast.process_group import BACKENDS, pick_device, use_own_gpu


@pytest.mark.parametrize(
    ("wanted", "available", "taken"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, wanted: str, available: bool, taken: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device(wanted) == taken


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device = 'cuda', .* Take device = 'auto'"):
        pick_device("cuda")


def test_each_local_rank_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    use_own_gpu("cpu")
    use_own_gpu("cuda")
    assert chosen == [3]


def test_every_device_has_gloo_for_control_messages() -> None:
    assert set(BACKENDS) == {"cpu", "cuda"}
    assert all("gloo" in backend for backend in BACKENDS.values())


def test_one_process_is_a_group_of_its_own() -> None:
    program = """
import torch, torch.distributed as dist
from passk_fast.process_group import start_process_group
start_process_group("cpu", 60)
total = torch.ones(1)
dist.all_reduce(total)
print(dist.get_rank(), dist.get_world_size(), dist.get_backend(), int(total))
dist.destroy_process_group()
"""
    torchruns = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={name: value for name, value in os.environ.items() if name not in torchruns},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["0", "1", "gloo", "1"], done.stderr
