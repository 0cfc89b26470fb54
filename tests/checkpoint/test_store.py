"""The checkpoint store: all or nothing, every manipulation found, old checkpoints never at risk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from passk_fast.checkpoint import store as store_module
from passk_fast.checkpoint.store import (
    CheckpointStore,
    CorruptCheckpointError,
    checkpoint_name,
    disk_errors,
    verify_checkpoint,
)
from passk_fast.errors import DiskError, ExitCode

SIZES = {"common.pt": 300, "shards/rank0.distcp": 500, "shards/rank1.distcp": 500, ".metadata": 90}


def content(step: int, name: str) -> bytes:
    return random.Random(f"{step} {name}").randbytes(SIZES[name])


def write_files(folder: Path, step: int) -> None:
    for name in SIZES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content(step, name))


def save(store: CheckpointStore, step: int) -> Path:
    write_files(store.begin(step), step)
    return store.commit(step)


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


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
    store.verify(folder)
    assert {name: (folder / name).read_bytes() for name in SIZES} == {
        name: content(20, name) for name in SIZES
    }
    assert (store.root / "LATEST").read_text() == "step_00000020\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["LATEST", "step_00000020"]


def test_manifest_is_plain_json_with_sizes_and_digests(store: CheckpointStore) -> None:
    folder = save(store, 3)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["step"] == 3
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content(3, name)).hexdigest(), "size": size}
        for name, size in SIZES.items()
    }


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
    store.verify(folder)
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


# Damage: every kind is found before use, the message names the file, the older one is taken.


def test_one_hundred_bit_flips(store: CheckpointStore, tmp_path: Path) -> None:
    files = all_files(save(store, 20))
    rng = random.Random(0)
    for trial in range(100):
        path = files[trial % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(CorruptCheckpointError) as caught:
            store.verify(store.path(20))
        assert path.name in str(caught.value)
        path.write_bytes(good)
    store.verify(store.path(20))


def test_twenty_truncations(store: CheckpointStore) -> None:
    files = all_files(save(store, 20))
    rng = random.Random(1)
    for trial in range(20):
        path = files[trial % len(files)]
        good = path.read_bytes()
        path.write_bytes(good[: rng.randrange(len(good))])
        with pytest.raises(CorruptCheckpointError) as caught:
            store.verify(store.path(20))
        assert path.name in str(caught.value)
        path.write_bytes(good)


def swap(one: Path, other: Path) -> None:
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (lambda f: (f / "common.pt").unlink(), "common.pt is missing"),
    "folder deleted": (lambda f: shutil.rmtree(f / "shards"), "rank0.distcp is missing"),
    "emptied": (lambda f: [p.unlink() for p in all_files(f)], "manifest.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "no digest": (lambda f: (f / "manifest.sha256").unlink(), "manifest.sha256 is missing"),
    "added": (lambda f: (f / "shards/extra.pt").write_bytes(b"x"), "extra.pt is not in the man"),
    "renamed": (lambda f: (f / "common.pt").rename(f / "c.pt"), "common.pt is missing"),
    "longer": (lambda f: (f / "common.pt").write_bytes(bytes(301)), "common.pt has 301 bytes"),
    "swapped": (
        lambda f: swap(f / "shards/rank0.distcp", f / "shards/rank1.distcp"),
        "rank0.distcp does not match its SHA-256",
    ),
    "swapped with the other step": (
        lambda f: swap(f / "common.pt", f.parent / "step_00000010" / "common.pt"),
        "common.pt does not match",
    ),
    "a link": (
        lambda f: ((f / "common.pt").unlink(), (f / "common.pt").symlink_to(f / ".metadata")),
        "common.pt is not a regular file",
    ),
    "other step's folder": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.parent / "step_00000010", f)),
        "manifest.json is of step 10",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_one_taken(
    store: CheckpointStore, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, 10)
    hit, message = DAMAGE[kind]
    folder = save(store, 20)
    hit(folder)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        store.verify(folder)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    with caplog.at_level(logging.WARNING):
        found = store.newest_good()
    assert found == (None if "swapped with" in kind else (10, store.path(10)))
    assert "step_00000020" in caplog.messages[0]
    assert message in caplog.messages[0]
    assert len(caplog.messages) == (2 if "swapped with" in kind else 1)


def test_other_format_is_refused(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(store, 20)
    monkeypatch.setattr(store_module, "FORMAT", 2)
    with pytest.raises(CorruptCheckpointError, match="format 1; this version reads 2"):
        verify_checkpoint(folder)


def test_unreadable_file_is_damage(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(store, 20)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(store_module, "_sha256", fail)
    with pytest.raises(CorruptCheckpointError, match=r"\.metadata cannot be read: Input/output"):
        verify_checkpoint(folder)


def test_manifest_is_checked_before_it_is_parsed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(store, 20)
    (folder / "manifest.json").write_text("{")
    monkeypatch.setattr(store_module.json, "loads", lambda raw: pytest.fail("parsed"))
    with pytest.raises(CorruptCheckpointError, match="does not match its digest"):
        verify_checkpoint(folder)


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
