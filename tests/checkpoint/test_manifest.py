"""The seal of a checkpoint: every manipulation is found, and what the manifest says is checked."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passk_fast.checkpoint import manifest as manifest_module
from passk_fast.checkpoint.manifest import CorruptCheckpointError, verify_checkpoint
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.errors import ExitCode
from tests.checkpoint.cases import SIZES, all_files, content, save


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_manifest_is_plain_json_with_sizes_and_digests(store: CheckpointStore) -> None:
    folder = save(store, 3)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["step"] == 3
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content(3, name)).hexdigest(), "size": size}
        for name, size in SIZES.items()
    }


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
            verify_checkpoint(store.path(20))
        assert path.name in str(caught.value)
        path.write_bytes(good)
    verify_checkpoint(store.path(20))


def test_twenty_truncations(store: CheckpointStore) -> None:
    files = all_files(save(store, 20))
    rng = random.Random(1)
    for trial in range(20):
        path = files[trial % len(files)]
        good = path.read_bytes()
        path.write_bytes(good[: rng.randrange(len(good))])
        with pytest.raises(CorruptCheckpointError) as caught:
            verify_checkpoint(store.path(20))
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
        verify_checkpoint(folder)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    if "swapped with" in kind:
        return  # hits both
    with caplog.at_level(logging.WARNING):
        assert store.newest_good() == (10, store.path(10))
    (told,) = caplog.messages
    assert "step_00000020" in told
    assert message in told


def test_other_format_is_refused(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(store, 20)
    monkeypatch.setattr(manifest_module, "FORMAT", 2)
    with pytest.raises(CorruptCheckpointError, match="format 1; this version reads 2"):
        verify_checkpoint(folder)


def test_unreadable_file_is_damage(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(store, 20)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(manifest_module, "_sha256", fail)
    with pytest.raises(CorruptCheckpointError, match=r"\.metadata cannot be read: Input/output"):
        verify_checkpoint(folder)


def test_manifest_is_checked_before_it_is_parsed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(store, 20)
    (folder / "manifest.json").write_text("{")
    monkeypatch.setattr(manifest_module.json, "loads", lambda raw: pytest.fail("parsed"))
    with pytest.raises(CorruptCheckpointError, match="does not match its digest"):
        verify_checkpoint(folder)


def test_without_digests_names_and_sizes_are_checked(store: CheckpointStore) -> None:
    folder = save(store, 20)
    file = folder / "common.pt"
    file.write_bytes(bytes(300))  # another content of the same size
    verify_checkpoint(folder, digests=False)
    file.write_bytes(b"short")
    with pytest.raises(CorruptCheckpointError, match="has 5 bytes, saved were 300"):
        verify_checkpoint(folder, digests=False)


# A manifest that someone wrote anew, with a digest that fits: its content is checked all the same.


def resealed(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], str]:
    """A manifest's text after a change of its content."""

    def text(manifest: dict[str, Any]) -> str:
        change(manifest)
        return json.dumps(manifest)

    return text


RESEALED: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "not JSON": (lambda m: "{", "is not JSON"),
    "deep": (lambda m: "[" * 100_000, "is not JSON"),
    "a list": (lambda m: json.dumps([m]), "is not an object with files, format and step"),
    "a number": (lambda m: "3", "is not an object with"),
    "null": (lambda m: "null", "is not an object with"),
    "no files": (edited(lambda m: m.pop("files")), "is not an object with"),
    "no format": (edited(lambda m: m.pop("format")), "is not an object with"),
    "no step": (edited(lambda m: m.pop("step")), "is not an object with"),
    "one key more": (edited(lambda m: m.update(more=1)), "is not an object with"),
    "other format": (edited(lambda m: m.update(format="1")), "has format 1; this version"),
    "other step": (edited(lambda m: m.update(step=10)), "is of step 10"),
    "step as text": (edited(lambda m: m.update(step="20")), "is of step 20"),
    "negative step": (edited(lambda m: m.update(step=-1)), "is of step -1"),
    "step as a list": (edited(lambda m: m.update(step=[20])), r"is of step \[20\]"),
    "files as a list": (edited(lambda m: m.update(files=list(m["files"]))), "files are no table"),
    "entry as text": (edited(lambda m: m["files"].update({"common.pt": "x"})), "of common.pt"),
    "no size": (edited(lambda m: m["files"]["common.pt"].pop("size")), "of common.pt"),
    "no digest": (edited(lambda m: m["files"]["common.pt"].pop("sha256")), "of common.pt"),
    "digest a number": (edited(lambda m: m["files"]["common.pt"].update(sha256=1)), "of common.pt"),
    "size a float": (edited(lambda m: m["files"]["common.pt"].update(size=300.0)), "of common.pt"),
    "a file less": (edited(lambda m: m["files"].pop("common.pt")), "common.pt is not in the man"),
    "a file more": (edited(lambda m: m["files"].update(x=m["files"]["common.pt"])), "x is missing"),
    "outside": (
        edited(lambda m: m["files"].update({"../LATEST": {"size": 1, "sha256": ""}})),
        "is m",
    ),
}


@pytest.mark.parametrize("kind", RESEALED)
def test_a_resealed_manifest_is_damage(store: CheckpointStore, kind: str) -> None:
    folder = save(store, 20)
    text, message = RESEALED[kind]
    resealed(folder, text(json.loads((folder / "manifest.json").read_text())))
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        verify_checkpoint(folder)
    assert str(folder) in str(caught.value)
