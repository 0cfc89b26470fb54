"""The device that is taken, and the process group of one process or of torchrun's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from passk_fast.errors import ConfigError
from passk_fast.process_group import BACKENDS, pick_device, use_own_gpu
from tests.message_workers import VALUE
from tests.ranks import RankPool


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


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as made:
        yield made


def test_json_is_the_same_on_every_rank(pool: RankPool) -> None:
    first, second = pool.run("tests.message_workers:values_everywhere")
    assert first == second
    gathered, broadcast, worked = first
    assert [entry["rank"] for entry in gathered] == [0, 1]
    assert [len(entry["long"]) for entry in gathered] == [0, 1000]
    assert all({name: entry[name] for name in VALUE} == VALUE for entry in gathered)
    assert broadcast == gathered[0]
    assert worked == [0, *VALUE]


def test_numbers_without_end_are_carried(pool: RankPool) -> None:
    assert pool.run("tests.message_workers:infinities") == [[float("-inf"), float("inf")]] * 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [("data", "DataError"), ("corrupt", "CorruptCheckpointError"), ("own", "_OwnError")],
)
def test_an_error_of_rank_0_is_everyones(pool: RankPool, kind: str, name: str) -> None:
    told = (name, f"{kind}: rows.jsonl:3 is broken.")
    assert pool.run("tests.message_workers:error_everywhere", kind) == [told, told]


def test_an_object_is_no_message(pool: RankPool) -> None:
    for said in pool.run("tests.message_workers:tensor_for_an_object"):
        assert "not JSON serializable" in said
