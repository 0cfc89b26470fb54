"""The checkpoint store: all or nothing, every manipulation found, old checkpoints never at risk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from passk_fast.checkpoint import store as store_module
from passk_fast.checkpoint.manifest import (
    CorruptCheckpointError,
    checkpoint_name,
    verify_checkpoint,
)
from passk_fast.checkpoint.store import CheckpointStore, disk_errors
from passk_fast.errors import DiskError, ExitCode
from tests.checkpoint.cases import SIZES, content, save, write_files


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_nothing_yet(store: CheckpointStore) -> None:
    assert store.newest_good() is None
    assert store.steps() == []


def test_commit_then_find(store: CheckpointStore) -> None:
    folder = save(store, 20)
    assert folder == store.root / "step_00000020"
    assert store.newest_good() == (20, folder)
    verify_checkpoint(folder)
    assert {name: (folder / name).read_bytes() for name in SIZES} == {
        name: content(20, name) for name in SIZES
    }
    assert (store.root / "LATEST").read_text() == "step_00000020\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["LATEST", "step_00000020"]


def test_staging_is_not_a_checkpoint_and_is_cleaned(store: CheckpointStore) -> None:
    save(store, 10)
    write_files(store.begin(20), 20)
    assert store.newest_good() == (10, store.path(10))
    staging = store.begin(30)
    assert list(staging.iterdir()) == []
    assert len(list(store.root.glob(".staging-*"))) == 1


def test_keeps_the_newest_n(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40):
        save(store, step)
    assert store.steps() == [30, 40]


def test_milestones_stay_beside_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, keep_every=20)
    for step in range(10, 71, 10):
        save(store, step)
    assert store.steps() == [20, 40, 60, 70]
    for step in store.steps():
        verify_checkpoint(store.path(step))
    CheckpointStore(tmp_path, keep=1).commit(save_files(store, 80))
    assert store.steps() == [80]  # switched off, they go


def save_files(store: CheckpointStore, step: int) -> int:
    """Stage a step; returns it."""
    write_files(store.begin(step), step)
    return step


def test_where_all_are_damaged_each_is_named(store: CheckpointStore) -> None:
    for step, name in ((10, "common.pt"), (20, "shards/rank1.distcp")):
        (save(store, step) / name).unlink()
    with pytest.raises(CorruptCheckpointError) as caught:
        store.newest_good()
    for name in ("step_00000010/common.pt", "step_00000020/shards/rank1.distcp"):
        assert f"{store.root}/{name} is missing." in str(caught.value)


def test_one_that_is_gone_back_to_is_the_newest(store: CheckpointStore) -> None:
    save(store, 10)
    save(store, 20)
    assert store.was_used()
    store.go_back_to(10)
    assert store.newest_good() == (10, store.path(10))
    assert (store.root / "LATEST").read_text() == "step_00000010\n"
    assert (store.root / "abandoned-step_00000020" / "common.pt").is_file()


def test_old_ones_are_there_until_the_new_one_is_complete(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep = 1
    save(store, 10)
    seen: list[bool] = []
    remove = shutil.rmtree

    def watch(path: Any, **kwargs: Any) -> None:
        seen.append(store.newest_good() == (20, store.path(20)))
        remove(path, **kwargs)

    monkeypatch.setattr(store_module.shutil, "rmtree", watch)
    save(store, 20)
    assert seen == [True]
    assert store.steps() == [20]


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    save(store, 10)
    store.begin(10).joinpath("other").write_bytes(b"new")
    folder = store.commit(10)
    verify_checkpoint(folder)
    assert (folder / "other").read_bytes() == b"new"
    assert not (folder / "common.pt").exists()


def test_later_steps_are_set_aside_not_resumed_and_not_deleted(store: CheckpointStore) -> None:
    for _ in range(2):
        save(store, 1000)
        save(store, 20)
        assert store.newest_good() == (20, store.path(20))
    names = sorted(path.name for path in store.root.glob("abandoned-*"))
    assert names == ["abandoned-step_00001000", "abandoned-step_00001000.1"]


def test_commit_without_begin_or_without_files_is_a_bug(store: CheckpointStore) -> None:
    with pytest.raises(AssertionError):
        store.commit(1)
    store.begin(1)
    with pytest.raises(AssertionError):
        store.commit(1)


def test_names() -> None:
    assert checkpoint_name(123456789) == "step_123456789"
    with pytest.raises(ValueError, match="0 or more"):
        checkpoint_name(-1)
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(Path("x"), keep=0)


def test_foreign_names_are_ignored(store: CheckpointStore) -> None:
    save(store, 10)
    for name in ("step_20", "step_00000030.old", "step_0000000040", "notes"):
        shutil.copytree(store.path(10), store.root / name)
    assert store.steps() == [10]


# A disk that fails, and a process that dies, at every system call of a save.

CALLS = ("fsync", "rename", "replace", "unlink", "rmdir")


class Killed(BaseException):
    """Stands for kill -9: nothing of the store's may run after it."""


def fail_at(monkeypatch: pytest.MonkeyPatch, index: int, error: BaseException) -> list[str]:
    """Make the index-th of CALLS raise once; returns the list of calls made, filled as they go."""
    made: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) == index + 1:
                raise error
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name))
    return made


def count_calls(root: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        made = fail_at(patch, -1, Killed())
        save(CheckpointStore(root, keep=2), 20)
        return len(made)


def attempt(store: CheckpointStore, step: int) -> str | None:
    """Save; the message of the DiskError, if it came to one."""
    try:
        save(store, step)
    except DiskError as error:
        return str(error)
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("target", [20, 10])
def test_disk_error_at_every_call_leaves_a_good_checkpoint(
    tmp_path: Path, code: int, target: int
) -> None:
    for index in range(count_calls(tmp_path / "count") + 2):
        store = CheckpointStore(tmp_path / f"run{index}", keep=2)
        save(store, 5)
        save(store, 10)
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, index, OSError(code, os.strerror(code)))
            outcome = attempt(store, target)
        assert (outcome is None) == (len(made) <= index)
        assert outcome is None or str(store.root) in outcome
        found = store.newest_good()
        assert found is not None
        assert found[0] in (10, target)
        assert not [p for p in store.root.glob(".staging-*") if any(p.iterdir())]
        save(store, 30)
        assert store.newest_good() == (30, store.path(30))


@pytest.mark.parametrize("target", [20, 10])
def test_killed_at_every_call_leaves_a_good_checkpoint(tmp_path: Path, target: int) -> None:
    for index in range(count_calls(tmp_path / "count") + 2):
        store = CheckpointStore(tmp_path / f"run{index}", keep=1)
        save(store, 10)
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, index, Killed())
            with contextlib.suppress(Killed):
                save(store, target)
        found = CheckpointStore(store.root, keep=1).newest_good()
        assert found is not None
        assert found[0] in (10, target)
        save(store, 30)
        assert sorted(p.name for p in store.root.iterdir()) == ["LATEST", "step_00000030"]


def test_disk_errors_names_path_and_reason(tmp_path: Path) -> None:
    full = pytest.raises(DiskError, match=r"shard\.pt: cannot write: the file system is full")
    with full as caught, disk_errors(tmp_path / "shard.pt"):
        raise OSError(errno.ENOSPC, "no")
    assert caught.value.exit_code == ExitCode.DISK
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no")


def test_space_check_names_path_needed_and_free(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check_space(0)
    usage = SimpleNamespace(total=9, used=8, free=1000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage)
    store.check_space(1000)
    with pytest.raises(DiskError, match=r"checkpoints: .*\(1001 bytes\).*\(1000 bytes\) are free"):
        store.check_space(1001)


def test_bytes_of_the_newest_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.newest_bytes() == 0
    for step, size in ((1, 900), (2, 100)):
        folder = store.begin(step)
        (folder / "shard").mkdir()
        (folder / "shard" / "a").write_bytes(b"x" * size)
        store.commit(step)
    manifest = store.path(2) / "manifest.json"
    digest = store.path(2) / "manifest.sha256"
    assert store.newest_bytes() == 100 + manifest.stat().st_size + digest.stat().st_size
