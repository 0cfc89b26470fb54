"""A rank as a process: what it prints, how it reports an error, the code it leaves with."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from passk_fast.errors import ExitCode, LostRankError, PasskError

PARENT = "PASSK_PARENT"
"""Environment variable: the process that must live as long as one that `die_with_parent`s."""
_PR_SET_PDEATHSIG = 1
_LONGEST = 500
"""Characters of an error's text in a line."""
_LOST = ("gloo", "Connection closed by peer", "Timed out", "NCCL", "Broken pipe")
"""Words of a RuntimeError with which a collective says that another rank is gone."""


def quiet() -> None:
    """Keep libraries from printing over the progress display."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.WARNING)
    for name in ("megatron", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def own_rank() -> int:
    """torchrun's rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def die_with_parent() -> None:
    """SIGKILL to this process when its parent ends, and to forks of this process when it ends.

    A rank that outlives its launcher would go on writing to a run folder that another start owns.
    PARENT in the environment names the parent, which may have ended already; a process that neither
    it nor torchrun started is left alone. Linux means the thread that started this process: main
    threads should.
    """
    parent = os.environ.get(PARENT)
    if parent is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _kill_when_parent_ends()
    if parent is not None and parent != str(os.getppid()):
        os._exit(int(ExitCode.LOST_RANK))
    os.register_at_fork(after_in_child=_kill_when_parent_ends)


def at_signals(handle: Callable[[int], None]) -> None:
    """Call `handle(number)` at SIGTERM and SIGINT, at once and in a thread of its own.

    Python runs its own handlers in the main thread between two instructions: not while that waits
    in a collective, which may be for a rank that hangs. Another call puts its `handle` in the place
    of the last one. Forks of this process have the default handlers. In the main thread only.
    """
    global _handle
    first, _handle = _handle is None, handle
    if not first:
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in _STOPPING:
        signal.signal(number, _ignore)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader, writer), daemon=True, name="signals")
    watch.start()
    os.register_at_fork(after_in_child=_forget_signals)


_STOPPING = (signal.SIGTERM, signal.SIGINT)
_handle: Callable[[int], None] | None = None


def _watch(reader: socket.socket, writer: socket.socket) -> None:
    """`writer` is held, for it is closed when nobody does."""
    while number := reader.recv(1):
        if _handle is not None and number[0] in _STOPPING:
            _handle(number[0])


def _ignore(number: int, frame: object) -> None:
    """`_watch` handles it."""


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_DFL)


def _kill_when_parent_ends() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def run_rank(
    work: Callable[[], ExitCode], before_exit: Callable[[ExitCode, str], None] | None = None
) -> NoReturn:
    """Run this rank's work and end the process with a code that says how it went.

    Errors are reported by `report_error`. `before_exit` is told the code and the error in a line
    (empty without one), while the connections to other ranks still stand. Other threads are not
    waited for. The process ends with its parent, and at a signal, until `work` handles signals.
    """
    die_with_parent()

    def leave(number: int) -> None:
        if before_exit is not None:
            before_exit(ExitCode.PREEMPTED, "")
        os._exit(int(ExitCode.PREEMPTED))

    at_signals(leave)
    quiet()
    rank = own_rank()  # `work` may change RANK
    said = ""
    try:
        code = work()
    except BaseException as error:
        code, said = report_error(error, rank), in_a_line(error)
    if before_exit is not None:
        before_exit(code, said)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # gloo's destructors may hang once a peer has left


def report_error(error: BaseException, rank: int) -> ExitCode:
    """Print a user's error as one paragraph (rank 0 alone does), anything else as a traceback."""
    known = _as_user_error(error)
    if known is None:
        traceback.print_exception(error)
        return ExitCode.CRASHED
    if rank == 0 or isinstance(known, LostRankError):
        print(f"error: {known}", file=sys.stderr, flush=True)
    return known.exit_code


def in_a_line(error: BaseException) -> str:
    """A user's error as it is shown; another one as "KeyError: 'x' (loop.py:71)"."""
    known = _as_user_error(error)
    if known is not None:
        return str(known)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:_LONGEST]
    return f"{type(error).__name__}: {text}{where}"


def _as_user_error(error: BaseException) -> PasskError | None:
    if isinstance(error, PasskError):
        return error
    if says_rank_lost(error):
        said = str(error).splitlines()[0]
        return LostRankError(f"A rank was lost or a collective timed out: {said}")
    return None


def says_rank_lost(error: BaseException) -> bool:
    """Whether it is a collective's word for a rank that is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
