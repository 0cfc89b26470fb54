"""The process inside a sandbox: takes requests, forks a child for each verdict, judges its end.

It is trusted and never runs a verifier itself. A child leaves its verdict in a file of its own;
whatever else it leaves behind (processes, files) is removed before the next one.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from passk_fast.tasks.sandbox import programs, seccomp, system
from passk_fast.tasks.sandbox.confinement import Ground, confine, own_address_space
from passk_fast.tasks.sandbox.namespaces import enter_namespaces, fresh_scratch
from passk_fast.tasks.sandbox.protocol import (
    LENGTH,
    SCRATCH,
    VERDICT,
    Call,
    Containment,
    Program,
    ProgramTest,
    Settings,
    Status,
)
from passk_fast.tasks.sandbox.verdicts import judged

_REPORT = 3
"""The number under which a child finds the file for its report."""


def main() -> None:
    """Serve the owner at the other end of standard input until it closes."""
    channel = socket.socket(fileno=os.dup(0))
    settings: Settings = pickle.loads(_read(channel))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    two_users, as_root = False, os.geteuid() == 0
    if settings.containment is not Containment.LIMITS and not seccomp.supported():
        sys.exit(f"system calls of {system.MACHINE} processors cannot be filtered")
    if settings.containment is Containment.NAMESPACES:
        try:
            two_users = enter_namespaces(settings.readable, settings.limits.file_mib)
        except OSError as error:
            sys.exit(error.strerror or str(error))
    system.prctl(system.PR_SET_DUMPABLE, 0)
    for name in settings.preload:
        importlib.import_module(name)
    gc.freeze()
    counted = two_users or not as_root
    ground = Ground(base=own_address_space(), two_users=two_users, counted=counted)
    server = _Server(channel, settings, ground)
    channel.sendall(VERDICT.pack(Status.JUDGED, 0.0))
    server.serve()


def _read(channel: socket.socket) -> bytes:
    """One message; b"" where the owner has closed the channel."""
    head = _exactly(channel, LENGTH.size)
    return _exactly(channel, LENGTH.unpack(head)[0]) if head else b""


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            return b""
        data += part
    return bytes(data)


@contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    number = os.memfd_create("verdict")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)


class _Server:
    """Judges one request after the other."""

    def __init__(self, channel: socket.socket, settings: Settings, ground: Ground) -> None:
        self._channel, self._ground = channel, ground
        self._limits, self._containment = settings.limits, settings.containment
        self._null = os.open("/dev/null", os.O_RDWR)

    def serve(self) -> None:
        while message := _read(self._channel):
            request: Call | Program = pickle.loads(message)
            if isinstance(request, Call) and request.in_every_verdict:
                status, reward = judged(request)
                gc.freeze()
            elif isinstance(request, Call):
                status, reward = self._call(request)
            else:
                status, reward = Status.JUDGED, self._share(request)
            self._channel.sendall(VERDICT.pack(status, reward))

    def _call(self, call: Call) -> tuple[Status, float]:
        # What runs in the child cannot know which bytes make a report before it is made.
        mark = os.urandom(16)
        with _memory_file() as report:
            ended = self._run(
                lambda: _exit_with(mark + VERDICT.pack(*judged(call))),
                (self._null, self._null, report),
            )
            written = os.pread(report, len(mark) + VERDICT.size + 1, 0)
        if ended is Status.TIMED_OUT:
            return ended, 0.0
        if len(written) != len(mark) + VERDICT.size or not written.startswith(mark):
            return Status.DIED, 0.0
        status, reward = VERDICT.unpack(written[len(mark) :])
        return Status(status), reward

    def _share(self, program: Program) -> float:
        deadline = time.monotonic() + program.wall_s
        passed = 0
        for test in program.tests:
            if time.monotonic() >= deadline:
                break
            passed += self._passes(program.source, test)
        return passed / len(program.tests)

    def _passes(self, source: str, test: ProgramTest) -> bool:
        mark = os.urandom(16)
        files = programs.files_of(source, test)
        with (
            _memory_file(test.stdin.encode(errors="surrogatepass")) as given,
            _memory_file() as printed,
            _memory_file(mark if test.stdout is None else b"") as report,
        ):
            ended = self._run(lambda: programs.execute(files, test), (given, printed, report))
            if ended is not Status.JUDGED:
                return False
            if test.stdout is None:
                return os.pread(report, len(mark) + 1, 0) == programs.passed(mark)
            size = os.fstat(printed).st_size
            return programs.same_output(os.pread(printed, size, 0), test.stdout)

    def _run(self, work: Callable[[], NoReturn], files: tuple[int, int, int]) -> Status:
        """Run a child with (input, output, report) as files 0, 1, 3; JUDGED if it left with 0."""
        deadline = time.monotonic() + self._limits.wall_s
        child = os.fork()
        if child == 0:
            self._become_child(work, files)
        watch = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            late = not poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(watch)
        self._kill(child)
        _, status = os.waitpid(child, 0)
        self._clear()
        if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return Status.TIMED_OUT
        return Status.JUDGED if status == 0 else Status.DIED

    def _become_child(self, work: Callable[[], NoReturn], files: tuple[int, int, int]) -> NoReturn:
        try:
            given, printed, report = files
            os.dup2(given, 0)
            os.dup2(printed, 1)
            os.dup2(self._null, 2)
            os.dup2(os.dup(report), _REPORT)  # a dup, so that the numbers differ
            os.closerange(_REPORT + 1, 1 << 16)
            confine(self._limits, self._containment, self._ground)
            work()
        finally:
            os._exit(1)

    def _kill(self, child: int) -> None:
        """End the child and all that it started."""
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)  # everything in this namespace but its process 1
            return
        os.kill(child, signal.SIGKILL)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # it had not come to make its group
            return

    def _clear(self) -> None:
        """Wait for what was killed, and empty the scratch folder."""
        if os.getpid() != 1:
            return
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        if not os.listdir(SCRATCH):
            return
        if self._containment is Containment.NAMESPACES:
            fresh_scratch(self._limits.file_mib)
            return
        for entry in os.scandir(SCRATCH):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        if os.listdir(SCRATCH):
            sys.exit("cannot empty the scratch folder")  # the owner starts a new sandbox


def _exit_with(report: bytes) -> NoReturn:
    os.write(_REPORT, report)
    os._exit(0)
