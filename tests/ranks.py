"""A pool of worker processes that are the ranks of one gloo (or NCCL) world, for tests.

Workers live as long as the pool, so an engine or a model built by one call serves the next.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from tests.shapes import check_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRACE_S = 5.0
"""How long the other ranks may still answer once one has failed."""


class RankError(RuntimeError):
    """A function failed on a rank; the message holds the rank and its traceback."""


class RankPool:
    """`world_size` processes with torch.distributed initialised.

    Example::

        with RankPool(2) as pool:
            assert pool.run("tests.test_ranks:rank_plus", 10) == [10, 11]

    Processes start at the first call, and again after a failure (which ends all of them).
    `env` is set in the workers before torch is imported; OMP_NUM_THREADS defaults to 1.
    """

    def __init__(
        self, world_size: int, *, backend: str = "gloo", env: dict[str, str] | None = None
    ) -> None:
        self.world_size = world_size
        self._backend = backend
        self._env = {"OMP_NUM_THREADS": "1", **(env or {})}
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, target: str, *args: Any, timeout_s: float = 240.0, **kwargs: Any) -> list[Any]:
        """Call `target` ("package.module:function") on every rank; the results in rank order.

        Arguments and results are pickled. Raises RankError with the rank and its traceback when a
        rank raises or dies, TimeoutError after `timeout_s` seconds; both end the workers.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((target, args, kwargs))
        answers = self._collect(time.monotonic() + timeout_s)
        failures = {rank: text for rank, (ok, text) in answers.items() if not ok}
        missing = [rank for rank in range(self.world_size) if rank not in answers]
        if failures or missing:
            self._kill()
        if failures:
            parts = [f"rank {rank}:\n{text}" for rank, text in sorted(failures.items())]
            raise RankError(f"{target} failed on " + "\n".join(parts))
        if missing:
            raise TimeoutError(f"{target}: ranks {missing} gave no answer in {timeout_s:g} s.")
        return [answers[rank][1] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the workers; the pool may be used again."""
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        for process in self._processes:
            process.join(_GRACE_S)
        self._kill()

    def _collect(self, deadline: float) -> dict[int, tuple[bool, Any]]:
        """Answers by rank, until all have answered or the deadline (sooner after a failure)."""
        answers: dict[int, tuple[bool, Any]] = {}
        open_pipes = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while open_pipes and (left := deadline - time.monotonic()) > 0:
            for pipe in wait(list(open_pipes), timeout=left):
                assert isinstance(pipe, Connection)
                rank = open_pipes.pop(pipe)
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, OSError):
                    self._processes[rank].join(1.0)
                    code = self._processes[rank].exitcode
                    answers[rank] = (False, f"process ended with exit code {code}")
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        return answers

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        store = os.path.join(self._folder.name, "store")
        port = str(_free_port())
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            env = {
                **self._env,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            process = context.Process(
                target=_worker, args=(theirs, self._backend, store, rank, self.world_size)
            )
            with _environment(env):
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _worker(pipe: Connection, backend: str, store: str, rank: int, world_size: int) -> None:
    """Serve calls until None arrives."""
    check_shapes()  # before anything imports passk_fast
    import torch.distributed as dist

    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    while (message := _receive(pipe)) is not None:
        target, args, kwargs = message
        try:
            module, name = target.split(":")
            answer = (True, getattr(importlib.import_module(module), name)(*args, **kwargs))
        except BaseException:  # torch has errors that are no Exception
            answer = (False, traceback.format_exc())
        pipe.send(answer)
    # vLLM and Megatron leave groups that cannot be destroyed in any order: leave them to the OS.
    os._exit(0)


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
