"""The LOCK of a run folder: one owner, taken over from the dead, never from the living."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passk_fast.errors import ConfigError, DiskError
from passk_fast.run.lock import LOCK, RunLock, is_owned, refuse_if_owned

_OWNER = """
import sys, os
from pathlib import Path
from passk_fast.run.lock import RunLock
lock = RunLock.take(Path(sys.argv[1]))
child = os.fork() if len(sys.argv) > 2 else 1
if child:
    print(os.getpid(), child, flush=True)
sys.stdin.read()
lock.release()
"""


@contextmanager
def _owner(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that owns `folder` until its input ends; with its pid, and its child's or 1."""
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        try:
            yield process, pids
        finally:
            process.kill()


def test_a_second_run_is_told_who_owns_the_folder(tmp_path: Path) -> None:
    with _owner(tmp_path) as (_, (pid, _child)):
        for ask in (refuse_if_owned, RunLock.take):
            with pytest.raises(ConfigError, match=rf"in use by a run on host .*process {pid}, st"):
                ask(tmp_path)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == pid


def test_a_folder_without_an_owner_is_free(tmp_path: Path) -> None:
    refuse_if_owned(tmp_path)
    refuse_if_owned(tmp_path / "missing")
    lock = RunLock.take(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_killed_run_is_taken_over_at_once(tmp_path: Path) -> None:
    with _owner(tmp_path) as (process, _):
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        assert not is_owned(tmp_path)
        RunLock.take(tmp_path).release()


def test_a_child_that_outlives_the_owner_does_not_hold_the_lock(tmp_path: Path) -> None:
    with _owner(tmp_path, "fork") as (process, (_, child)):
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # still there
            RunLock.take(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_stopped_owner_still_owns(tmp_path: Path) -> None:
    with _owner(tmp_path) as (process, _):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match="in use"):
            RunLock.take(tmp_path)


def _name_another_host(folder: Path) -> Path:
    file = folder / LOCK
    file.write_text(json.dumps({"host": "another", "pid": 7, "started": "yesterday"}))
    return file


def test_another_host_without_a_sign_of_life_is_taken_over(tmp_path: Path) -> None:
    _name_another_host(tmp_path)
    lock = RunLock.take(tmp_path, beat_s=0.05)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()


def test_another_host_that_touches_the_file_owns_it(tmp_path: Path) -> None:
    """As on a file system that does not carry locks between hosts."""
    file, done = _name_another_host(tmp_path), threading.Event()

    def beat() -> None:
        while not done.wait(0.02):
            os.utime(file)

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(ConfigError, match="host another, process 7, started yesterday"):
            RunLock.take(tmp_path, beat_s=0.3)
    finally:
        done.set()
        other.join()


def test_the_owner_touches_the_file(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path, beat_s=0.02)
    os.utime(tmp_path / LOCK, (0, 0))
    for _ in range(500):
        if (tmp_path / LOCK).stat().st_mtime > 0:
            break
        threading.Event().wait(0.02)
    assert (tmp_path / LOCK).stat().st_mtime > 0
    lock.release()


@pytest.mark.parametrize("text", ["", "not json", "[1]", "\x00\x00"])
def test_a_lock_file_that_cannot_be_read_is_no_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    RunLock.take(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(DiskError, match="LOCK: cannot be written"):
        RunLock.take(tmp_path)
