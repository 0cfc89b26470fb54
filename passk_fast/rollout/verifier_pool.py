"""Verifying in processes of their own: what a verifier does there ends one verdict at most.

A process that raises goes on with the next job. One that hangs, leaves or dies is replaced, with
whatever it forked. Its output is thrown away, and only numbers and texts come back from it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait

import psutil

from passk_fast.config import RolloutConfig
from passk_fast.data.types import Prompt
from passk_fast.rollout import verifier_channel as channel
from passk_fast.rollout.verdict import VerifierError, Verify, as_verifier_error, reward_of
from passk_fast.rollout.verifier_process import serve

START_S = 120.0
"""How long a process may take to start and to import the verifier."""
MEMORY_MIB = RolloutConfig().verify_memory_mib


class VerifierPool:
    """Worker processes for one verifier; a job that takes over `timeout_s` is ended with its
    process."""

    def __init__(
        self, verify: Verify, processes: int, timeout_s: float, memory_mib: int = MEMORY_MIB
    ) -> None:
        """`verify` must be picklable. Processes start with the first response."""
        self.timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers = [
            _Worker(verify, timeout_s, memory_mib, self._jobs) for _ in range(processes)
        ]

    @classmethod
    def of(cls, verify: Verify, settings: RolloutConfig) -> VerifierPool:
        """As the configuration says, and one process at least: a user's function needs one."""
        processes = max(1, settings.verify_processes)
        return cls(verify, processes, settings.verify_timeout_s, settings.verify_memory_mib)

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
        self,
        verify: Verify,
        timeout_s: float,
        memory_mib: int,
        jobs: queue.SimpleQueue[_Job | None],
    ) -> None:
        self._verify, self._timeout_s, self._jobs = verify, timeout_s, jobs
        self._memory_mib = memory_mib
        self._thread = threading.Thread(target=self._run, name="verifier", daemon=True)
        self._lock = threading.Lock()
        self._ended = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._socket: socket.socket | None = None
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
        assert self._socket is not None
        message = json.dumps([vars(job.prompt), job.texts]).encode()
        deadline = time.monotonic() + self._timeout_s
        try:
            channel.send_job(self._socket, message, self._timeout_s)
        except TimeoutError:
            raise self._late(self._timeout_s, "rollout.verify_timeout_s") from None
        except OSError:
            raise self._lost() from None
        return self._answer(len(job.texts), deadline, "rollout.verify_timeout_s")

    def _start(self) -> None:
        # The trainer has threads and a process group: neither survives a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = socket.socketpair()
        with self._lock:
            if self._ended:
                raise VerifierError("Stopped", "the run ends")
            arguments = theirs, self._verify, self._memory_mib
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            assert process.pid is not None
            self._process, self._socket = process, ours
            self._pidfd = os.pidfd_open(process.pid)
        theirs.close()
        try:
            self._answer(0, time.monotonic() + START_S, "to start")
        except VerifierError:
            self._lose()
            raise

    def _answer(self, count: int, deadline: float, what: str) -> list[float]:
        """The rewards that the process sends next. A child that the verifier forked may hold the
        socket open, so the process itself is watched too."""
        assert self._socket is not None
        start = time.monotonic()
        ready = wait([self._socket, self._pidfd], max(0.0, deadline - start))
        if not ready:
            raise self._late(deadline - start, what)
        if self._socket not in ready and not wait([self._socket], 0):
            raise self._lost()
        try:
            answer = channel.receive(self._socket, count, deadline)
            if not isinstance(answer, channel.Failure):
                return [reward_of(reward) for reward in answer]
        except TimeoutError:
            raise self._late(deadline - start, what) from None
        except (EOFError, OSError):
            raise self._lost() from None
        except (channel.BadAnswerError, ValueError):
            self._lose()
            told = "the verifier wrote into its process's answers"
            raise VerifierError("BadAnswer", told) from None
        raise VerifierError(answer.kind, answer.text, answer.where)

    def _late(self, seconds: float, what: str) -> VerifierError:
        self._lose()
        return VerifierError("TimeoutError", f"no verdict in {seconds:.3g} s ({what})")

    def _lost(self) -> VerifierError:
        process = self._process
        assert process is not None
        process.join(1.0)
        code = process.exitcode
        self._lose()
        return VerifierError("ProcessEnded", f"the verifier ended its process, exit code {code}")

    def _signal(self) -> None:
        """Kill the process and whatever it forked: it is the leader of their group. Its child, if
        any, is process 1 of a namespace, with which all others in there end."""
        if self._process is None or self._process.pid is None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                child.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _lose(self) -> None:
        with self._lock:
            self._signal()
            if self._process is not None:
                self._process.join()
                os.close(self._pidfd)
            if self._socket is not None:
                self._socket.close()
            self._process, self._socket, self._pidfd = None, None, -1
