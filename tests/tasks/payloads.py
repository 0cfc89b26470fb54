"""Verifiers for the sandbox's tests: each does what hostile text could make a verifier do."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import lru_cache
from pathlib import Path


def constant(value: object) -> object:
    """The value itself, whatever it is."""
    return value


def evaluate(text: str) -> object:
    """What a careless verifier does with an answer."""
    return eval(text)


def execute(text: str) -> float:
    """1.0 if the statements run to their end."""
    exec(text, {})
    return 1.0


def fork_bomb() -> float:
    """Forks until it may not; the share of forks that were refused."""
    refused = 0
    for _ in range(50):
        try:
            if os.fork() == 0:
                time.sleep(60)
        except OSError:
            refused += 1
    return refused / 50


def thread_bomb() -> float:
    """1.0 if threads cannot be started without end."""
    try:
        for _ in range(10_000):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        return 1.0
    return 0.0


def leave_a_process_behind() -> float:
    """A child that outlives the verdict, and writes a file a while later."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(0.5)
        Path(tempfile.gettempdir(), "left").write_text("x")
        os._exit(0)
    return 1.0


def leave_a_file_behind() -> float:
    Path(tempfile.gettempdir(), "left").write_text("x")
    return 1.0


def finds_nothing_left() -> float:
    """1.0 in an empty scratch folder and without other processes than the sandbox's own."""
    time.sleep(0.1)
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return float(not os.listdir(tempfile.gettempdir()) and set(numbers) <= {1, os.getpid()})


def kill_everything() -> float:
    """1.0 if no signal reaches the process that forked this one."""
    for target in (os.getppid(), 1, -1):
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
            try:
                os.kill(target, number)
            except OSError:
                continue
    return 1.0


def writable_places() -> float:
    """Number of folders outside of the scratch folder, / 100, in which a file can be made."""
    found = 0
    places = (
        "/",
        "/etc",
        "/usr",
        "/usr/bin",
        "/dev",
        "/proc",
        sys.prefix,
        str(Path(__file__).parent),
    )
    for folder in places:
        try:
            Path(folder, "hostile").write_text("x")
            found += 1
        except OSError:
            continue
    return found / 100


def overwrite(path: str) -> float:
    Path(path).write_text("hostile")
    return 1.0


def exists(path: str) -> float:
    return float(os.path.exists(path))


def connect(host: str, port: int) -> float:
    with socket.create_connection((host, port), timeout=1):
        return 1.0


def run_a_command() -> float:
    return float(subprocess.run(["/bin/true"], check=False).returncode == 0)


def _has_capabilities() -> bool:
    (effective,) = re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    return int(effective, 16) != 0


def new_privileges() -> float:
    """Number of steps towards privileges, / 100, that succeed."""
    library = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts = 0x10000000, 0x20000
    steps = (
        lambda: library.unshare(new_user) == 0,
        lambda: library.unshare(new_mounts) == 0,
        lambda: library.mount(b"none", b"/scratch", b"tmpfs", 0, None) == 0,
        lambda: library.umount2(b"/scratch", 2) == 0,
        lambda: library.ptrace(16, 1, 0, 0) == 0,
        lambda: library.shmget(0, 4096, 0o1600) >= 0,
        lambda: library.setuid(0) == 0 and _has_capabilities(),
        lambda: library.chroot(b"/scratch") == 0,
        lambda: library.memfd_create(b"x", 0) >= 0,
        lambda: os.path.exists("/proc/1/mem") and os.open("/proc/1/mem", os.O_RDONLY) > 0,
    )
    found = 0
    for step in steps:
        try:
            found += step()
        except OSError:
            continue
    return found / 100


def allocate(mib: int) -> float:
    block = bytearray(mib << 20)
    return float(len(block) == mib << 20)


def flood() -> float:
    """Prints for ever."""
    while True:
        os.write(1, b"x" * 65536)


def fill_tmp(mib: int) -> float:
    folder = tempfile.gettempdir()
    with open(f"{folder}/a", "wb") as file, open(f"{folder}/b", "wb") as other:
        for _ in range(mib):
            file.write(bytes(1 << 20))
            other.write(bytes(1 << 20))
    return 1.0


def wait_for_a_writer(path: str) -> float:
    """Waits until a named pipe is written to; what was written."""
    return float(Path(path).read_text())


def open_many(count: int) -> float:
    files = [open("/dev/null") for _ in range(count)]  # noqa: SIM115
    return float(len(files) == count)


def recurse(depth: int = 0) -> float:
    return recurse(depth + 1)


def crash() -> float:
    ctypes.string_at(0)
    return 1.0


def forge() -> float:
    """Writes verdicts into every file that it holds, and leaves."""
    for number in range(64):
        for text in (b"\0" + b"\0\0\0\0\0\0\xf0\x3f", b"\1" * 40):
            try:
                os.write(number, text)
            except OSError:
                continue
    os._exit(0)


def environment_size() -> float:
    """The share of environment variables that are not the sandbox's own."""
    own = {"PATH", "HOME", "LANG", "LC_CTYPE", "PYTHONHASHSEED", "PWD", "OLDPWD", "SHLVL"}
    own |= {"TMPDIR", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    return len(set(os.environ) - own) / max(1, len(os.environ))


@lru_cache
def remembered() -> float:
    """Time of the first call in this process."""
    return time.monotonic() % 1.0
