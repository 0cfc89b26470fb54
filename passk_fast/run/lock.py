"""One run folder, one run: the file LOCK says which process writes there.

The owner is rank 0. It holds a POSIX record lock, which ends with the process however that dies
and which forked children do not inherit, and it touches the file every few seconds for file systems
that do not carry locks from host to host.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO

from passk_fast.errors import ConfigError, DiskError

LOCK = "LOCK"
BEAT_S = 5.0
"""Seconds between two touches of the file by its owner."""

_MISSED_BEATS = 3
_TRIES = 5
_TRY_AGAIN_S = 0.1


class RunLock:
    """Ownership of a run folder, from `take` until `release` or the end of the process."""

    def __init__(self, path: Path, file: IO[str], beat_s: float) -> None:
        """`file` is the open, locked file at `path`; see `take`."""
        self._path, self._file = path, file
        self._released = threading.Event()
        threading.Thread(target=self._beat, args=(beat_s,), daemon=True, name="run lock").start()

    @classmethod
    def take(cls, folder: Path, *, beat_s: float = BEAT_S) -> RunLock:
        """Own the folder. The lock of a dead process is taken over; where it names another host,
        after `beat_s` times three without a sign of life.

        Raises:
            ConfigError: a living run owns it; the message names host, process and start.
            DiskError: LOCK cannot be written.
        """
        path = folder / LOCK
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DiskError(f"{path}: cannot be written: {error.strerror}.") from None
        owner = _owner(file)
        if not _lock(file) or _lives_elsewhere(owner, path, beat_s):
            file.close()
            raise _owned(folder, owner)
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            file.close()  # the last owner removed the file in between
            return cls.take(folder, beat_s=beat_s)
        file.truncate(0)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}
        file.write(json.dumps(me) + "\n")
        file.flush()
        return cls(path, file, beat_s)

    def release(self) -> None:
        """Give the folder up and remove the file. Calling it again does nothing."""
        if not self._released.is_set():
            self._released.set()
            self._path.unlink(missing_ok=True)
            self._file.close()

    def _beat(self, beat_s: float) -> None:
        while not self._released.wait(beat_s):
            try:
                os.utime(self._file.fileno())
            except (OSError, ValueError):  # a disk that fails for a moment, or `release`
                continue


def refuse_if_owned(folder: Path) -> None:
    """Raise ConfigError where a living process of this host, or of a host whose locks this one
    sees, owns the folder. It neither waits nor changes anything."""
    if is_owned(folder):
        raise _owned(folder, owner_of(folder))


def owner_of(folder: Path) -> dict[str, object]:
    """Host, process (pid) and start (started) of the owner; empty where LOCK does not say."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            return _owner(file)
    except OSError:
        return {}


def is_owned(folder: Path) -> bool:
    """Whether another process holds the folder's lock. Not for the owner, which would lose it.

    POSIX ends a process's lock on a file when the process closes any descriptor of that file.
    """
    try:
        file = (folder / LOCK).open("r+", encoding="utf-8")
    except OSError:
        return False
    with file:
        return not _lock(file)


def _lock(file: IO[str]) -> bool:
    """Lock, without waiting long: another process may be asking `is_owned` at this moment."""
    for _ in range(_TRIES):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            time.sleep(_TRY_AGAIN_S)
        except OSError:  # a file system without locks: the beats decide
            return True
        else:
            return True
    return False


def _owner(file: IO[str]) -> dict[str, object]:
    """What the file says of its owner; empty where it says nothing that can be read."""
    file.seek(0)
    try:
        owner = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives_elsewhere(owner: dict[str, object], path: Path, beat_s: float) -> bool:
    """Whether a process of another host touches the file while this one looks at it."""
    if owner.get("host") in (None, socket.gethostname()):
        return False
    last = path.stat().st_mtime_ns
    deadline = time.monotonic() + _MISSED_BEATS * beat_s
    while time.monotonic() < deadline:
        time.sleep(beat_s / 10)
        if path.exists() and path.stat().st_mtime_ns != last:
            return True
    return False


def _owned(folder: Path, owner: dict[str, object]) -> ConfigError:
    return ConfigError(
        f"output_dir: {folder} is in use by a run on host {owner.get('host', 'unknown')}, process "
        f"{owner.get('pid', 'unknown')}, started {owner.get('started', 'unknown')}. Wait for it, "
        "stop it, or take another --output-dir."
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
