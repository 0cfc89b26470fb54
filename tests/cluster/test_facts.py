"""What a rank says about its own host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from passk_fast.cluster import facts
from passk_fast.cluster.facts import (
    PACKAGES,
    available_memory_gib,
    collect,
    commit_of,
    driver_version,
    shared_environment,
    versions,
)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


def test_the_commit_says_whether_files_were_changed(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == "none"
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == "none", "no commit yet"
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = commit_of(tmp_path)
    assert len(clean) == 12
    (tmp_path / "new").write_text("not tracked")
    assert commit_of(tmp_path) == clean
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == f"{clean}+changes"


@pytest.mark.parametrize(
    ("prints", "code", "wanted"),
    [
        ("580.65.06\n580.65.06\n", 0, "580.65.06"),
        ("580.65.06\n575.57.08\n", 0, "575.57.08, 580.65.06"),
        ("", 0, "absent"),
        ("NVIDIA-SMI has failed", 9, "absent"),
    ],
)
def test_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, code: int, wanted: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{prints}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert driver_version() == wanted


def test_no_driver_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() == "absent"


def test_only_what_hosts_must_share_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in shared_environment():
        monkeypatch.delenv(name)
    own_to_a_host = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_DEBUG_FILE")
    for name in (*own_to_a_host, "NCCL_ALGO", "GLOO_DEVICE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "x")
    assert shared_environment() == {"GLOO_DEVICE": "x", "NCCL_ALGO": "x"}


def test_memory_is_some_and_no_more_than_the_host_has() -> None:
    text = Path("/proc/meminfo").read_text()
    total = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemTotal"))
    assert 0.0 < available_memory_gib() <= total / 2**20


def test_versions_name_every_package_even_where_it_is_absent() -> None:
    found = versions()
    assert {*PACKAGES, "passk_fast", "commit", "CUDA", "driver"} == set(found)
    assert all(found.values())
    assert found["vllm"] != "absent", "vLLM's CPU build counts as vLLM"


def test_ranks_come_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "11", "LOCAL_RANK": "3", "GROUP_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(facts, "versions", dict)
    found = collect()
    assert (found.rank, found.local_rank, found.node) == (11, 3, 2)
    assert found.measured == {}
    assert found.open_files > 0
