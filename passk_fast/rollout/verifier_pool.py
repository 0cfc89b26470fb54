"""Verifying in processes of their own: what a verifier does there ends one verdict at most.

A process that raises goes on with the next job. One that hangs, leaves or dies is replaced, with
whatever it forked. Its output is thrown away, and only numbers and texts come back from it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from passk_fast.config import RolloutConfig
from passk_fast.data.types import Prompt

Verify = Callable[[Prompt, str], float]
"""The reward of a response (its text) to a prompt; expected in [0, 1], and checked."""
START_S = 120.0
"""How long a process may take to start and to import the verifier."""
_OUR_FOLDER = str(Path(__file__).parents[1]) + os.sep
_LONGEST = 500
"""Characters of an exception's text that are kept."""


@runtime_checkable
class GroupVerifier(Protocol):
    """A verifier that knows more than how to judge one response."""

    def __call__(self, prompt: Prompt, text: str) -> float:
        """As `Verify`."""

    def of_group(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[object]:
        """The rewards of several responses to one prompt, in their order."""

    def wants_groups(self, prompt: Prompt) -> bool:
        """Whether responses to this prompt are to be judged together."""

    def needs_process(self, prompt: Prompt) -> bool:
        """Whether the verifier is code that this process must not run itself."""

    def prepare(self) -> None:
        """Import what verdicts need, before the deadline of the first one runs."""


class VerifierError(Exception):
    """A verifier gave no reward."""

    def __init__(self, kind: str, text: str, where: str = "") -> None:
        """`kind` is the exception's class or what else happened; `where` its line of code."""
        super().__init__(": ".join(part for part in (kind, text) if part))
        self.kind, self.text, self.where = kind, text, where

    def words(self) -> str:
        """The exception's last line, and where it was raised."""
        return f"{self} ({self.where})" if self.where else str(self)


def reward_of(value: object) -> float:
    """The value as a reward; ValueError unless it is a number in [0, 1]."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        reward = float(value)
        if math.isfinite(reward) and 0.0 <= reward <= 1.0:
            return reward
    raise ValueError(f"the verifier gave {_short(value)}, not a reward in [0, 1]")


def rewards_by(verify: Verify, prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """Checked rewards of responses to one prompt, in this process.

    Raises:
        VerifierError: the verifier raised an Exception, or gave no rewards.
    """
    try:
        if isinstance(verify, GroupVerifier) and verify.wants_groups(prompt):
            rewards = [reward_of(value) for value in verify.of_group(prompt, texts)]
        else:
            rewards = [reward_of(verify(prompt, text)) for text in texts]
        if len(rewards) != len(texts):
            raise ValueError(f"the verifier gave {len(rewards)} rewards for {len(texts)} responses")
    except Exception as error:  # a user's verifier may raise anything; it is counted, not hidden
        raise as_verifier_error(error) from error
    return rewards


def as_verifier_error(error: BaseException) -> VerifierError:
    """What is kept of an exception: its class, its text and its line of code."""
    try:
        text = str(error)[:_LONGEST]
    except BaseException:  # even `__str__` is the user's own
        text = "its text cannot be shown"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OUR_FOLDER)]
    where = f"{os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno}" if theirs else ""
    return VerifierError(type(error).__name__, text, where)


class VerifierPool:
    """Worker processes for one verifier; a job that takes over `timeout_s` is ended with its
    process."""

    def __init__(self, verify: Verify, processes: int, timeout_s: float) -> None:
        """`verify` must be picklable. Processes start with the first response."""
        self.timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers = [_Worker(verify, timeout_s, self._jobs) for _ in range(processes)]

    @classmethod
    def of(cls, verify: Verify, settings: RolloutConfig) -> VerifierPool:
        """As the configuration says, and one process at least: a user's function needs one."""
        return cls(verify, max(1, settings.verify_processes), settings.verify_timeout_s)

    def submit(self, prompt: Prompt, texts: Sequence[str]) -> Future[list[float]]:
        """A future with the rewards in [0, 1] of responses to a prompt, or a VerifierError."""
        job = _Job(prompt, list(texts), Future())
        for worker in self._workers:
            worker.begin()
        self._jobs.put(job)
        return job.future

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes; jobs that are not done are given up."""
        for worker in self._workers:
            worker.end()
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join()


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    texts: list[str]
    future: Future[list[float]]


class _Worker:
    """A thread that hands jobs to a process of its own, and replaces it when it is lost."""

    def __init__(
        self, verify: Verify, timeout_s: float, jobs: queue.SimpleQueue[_Job | None]
    ) -> None:
        self._verify, self._timeout_s, self._jobs = verify, timeout_s, jobs
        self._thread = threading.Thread(target=self._run, name="verifier", daemon=True)
        self._lock = threading.Lock()
        self._ended = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._pidfd = -1

    def begin(self) -> None:
        if not self._thread.is_alive() and not self._ended:
            self._thread.start()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._signal()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(self._judge(job))
            except VerifierError as error:
                job.future.set_exception(error)
            except Exception as error:  # such as no memory for a process
                job.future.set_exception(as_verifier_error(error))
        self._lose()

    def _judge(self, job: _Job) -> list[float]:
        if self._process is None:
            self._start()
        assert self._pipe is not None
        message = json.dumps([vars(job.prompt), job.texts]).encode()
        try:
            self._pipe.send_bytes(message)
        except OSError:
            raise self._lost() from None
        answer = self._answer(self._timeout_s, "rollout.verify_timeout_s")
        if "rewards" in answer:
            return [float(reward) for reward in answer["rewards"]]
        raise VerifierError(*answer["error"])

    def _start(self) -> None:
        # The trainer has threads and a process group: neither survives a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with self._lock:
            if self._ended:
                raise VerifierError("Stopped", "the run ends")
            process = context.Process(target=_serve, args=(theirs, self._verify), daemon=True)
            process.start()
            assert process.pid is not None
            self._process, self._pipe = process, ours
            self._pidfd = os.pidfd_open(process.pid)
        theirs.close()
        answer = self._answer(START_S, "to start")
        if "error" in answer:
            self._lose()
            raise VerifierError(*answer["error"])

    def _answer(self, timeout_s: float, what: str) -> dict[str, list[str]]:
        """The process's next message. A child that the verifier forked may hold the pipe open, so
        the process itself is watched too."""
        assert self._pipe is not None
        ready = wait([self._pipe, self._pidfd], timeout_s)
        if not ready:
            self._lose()
            raise VerifierError("TimeoutError", f"no verdict in {timeout_s:g} s ({what})")
        try:
            if self._pipe in ready or self._pipe.poll():
                answer: dict[str, list[str]] = json.loads(self._pipe.recv_bytes())
                return answer
        except (EOFError, OSError, ValueError):
            pass
        raise self._lost()

    def _lost(self) -> VerifierError:
        process = self._process
        assert process is not None
        process.join(1.0)
        code = process.exitcode
        self._lose()
        return VerifierError("ProcessEnded", f"the verifier ended its process, exit code {code}")

    def _signal(self) -> None:
        """Kill the process and whatever it forked: it is the leader of their group."""
        if self._process is None or self._process.pid is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _lose(self) -> None:
        with self._lock:
            self._signal()
            if self._process is not None:
                self._process.join()
                os.close(self._pidfd)
            if self._pipe is not None:
                self._pipe.close()
            self._process, self._pipe, self._pidfd = None, None, -1


def _serve(pipe: Connection, verify: Verify) -> None:
    """Judge jobs until the pipe is closed."""
    os.setsid()  # so that Ctrl-C is the trainer's alone, and children can be ended with this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(sink, standard)
    own = os.getpid()
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe.send_bytes(json.dumps(_prepared(verify)).encode())
    while True:
        try:
            values, texts = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer: Mapping[str, list[float] | list[str]] = {
                "rewards": rewards_by(verify, Prompt(**values), texts)
            }
        except BaseException as error:  # SystemExit and KeyboardInterrupt included
            answer = _told(error)
        if os.getpid() != own:
            os._exit(0)  # a child that the verifier forked and let return
        pipe.send_bytes(json.dumps(answer).encode())


def _prepared(verify: Verify) -> dict[str, list[str]]:
    """The first message: empty, or what the verifier's import raised."""
    try:
        if isinstance(verify, GroupVerifier):
            verify.prepare()
    except BaseException as error:
        return _told(error)
    return {}


def _told(error: BaseException) -> dict[str, list[str]]:
    told = error if isinstance(error, VerifierError) else as_verifier_error(error)
    return {"error": [told.kind, told.text, told.where]}


def _end_with(parent: int) -> None:
    """Leave when the trainer is gone, however it went."""
    descriptor = os.pidfd_open(parent)
    wait([descriptor])
    os.killpg(os.getpid(), signal.SIGKILL)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
