"""The verifier's process: takes jobs, answers with floats, and can signal nobody outside.

Where the system lets it, it lives in a PID namespace of its own: the trainer has no number there.
An outer process starts the namespace's process 1, and that one the process which verifies.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn

from passk_fast.data.types import Prompt
from passk_fast.rollout import verifier_channel as channel
from passk_fast.rollout.verdict import (
    GroupVerifier,
    VerifierError,
    Verify,
    as_verifier_error,
    rewards_by,
)

_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_SIGNALLED = 128
"""Added to the number of the signal that ended a process, as shells do."""


def serve(own: socket.socket, verify: Verify, memory_mib: int) -> None:
    """Judge jobs until the socket is closed. What is verified may allocate `memory_mib` MiB more
    than this process has once the verifier is imported; 0 is no limit."""
    os.setsid()  # so that Ctrl-C is the trainer's alone, and children can be ended with this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(sink, standard)
    trainer = os.pidfd_open(os.getppid())
    if enter_pid_namespace():
        _watch_namespace(own, trainer)
    else:
        threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()
    _serve(own, verify, memory_mib)


def enter_pid_namespace() -> bool:
    """Put the children of this process into a PID namespace; False where the system forbids it."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if os.geteuid() == 0:
        return bool(unshare(_CLONE_NEWPID) == 0)
    user, group = os.geteuid(), os.getegid()
    if unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        return False
    with suppress(OSError):  # files that the verifier writes keep their owner
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1\n")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1\n")
    return True


def _watch_namespace(own: socket.socket, trainer: int) -> None:
    """Returns in the process that verifies; the two above it wait for its end."""
    first = os.fork()
    if first:
        own.close()
        ended = os.pidfd_open(first)
        if ended not in wait([trainer, ended]):
            os.kill(first, signal.SIGKILL)
        _end_as(os.waitpid(first, 0)[1])
    os.close(trainer)  # with it the verifier could ask for the trainer
    verifier = os.fork()
    if verifier:
        own.close()
        while True:
            ended, status = os.wait()
            if ended == verifier:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else _SIGNALLED - code)
    os.setsid()  # a signal to its process group reaches none of the two


def _end_as(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code > _SIGNALLED:
        os.kill(os.getpid(), code - _SIGNALLED)
    os._exit(max(code, 0))


def _end_with(trainer: int) -> None:
    """Leave when the trainer is gone, however it went."""
    wait([trainer])
    os.killpg(os.getpid(), signal.SIGKILL)


def _serve(own: socket.socket, verify: Verify, memory_mib: int) -> None:
    here = os.getpid()
    own.sendall(_prepared(verify))
    limit_memory(memory_mib)
    while True:
        try:
            values, texts = json.loads(channel.receive_job(own))
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = channel.rewards(rewards_by(verify, Prompt(**values), texts))
        except BaseException as error:  # SystemExit and KeyboardInterrupt included
            answer = _told(error)
        if os.getpid() != here:
            os._exit(0)  # a child that the verifier forked and let return
        own.sendall(answer)


def limit_memory(mib: int) -> None:
    """Let this process and each of its children have `mib` MiB of private memory more; 0 is all."""
    if mib == 0:
        return
    lines = Path("/proc/self/status").read_text().splitlines()
    has_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    most = has_kib * 1024 + mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _prepared(verify: Verify) -> bytes:
    """The first message: no rewards, or what the verifier's import raised."""
    try:
        if isinstance(verify, GroupVerifier):
            verify.prepare()
    except BaseException as error:
        return _told(error)
    return channel.rewards([])


def _told(error: BaseException) -> bytes:
    told = error if isinstance(error, VerifierError) else as_verifier_error(error)
    return channel.failure(told.kind, told.text, told.where)
