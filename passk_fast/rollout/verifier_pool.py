"""Verifying in processes of their own, so that a verifier that hangs can be ended."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from passk_fast.data.types import Prompt

if TYPE_CHECKING:
    from pebble import ProcessPool

Verify = Callable[[Prompt, str], float]
"""The reward of a response (its text) to a prompt; expected in [0, 1], and checked."""


class VerifierPool:
    """Runs a verifier in worker processes; a worker that takes over `timeout_s` is killed."""

    def __init__(self, verify: Verify, processes: int, timeout_s: float) -> None:
        """`verify` must be picklable. Processes start with the first response."""
        from pebble import ProcessPool

        self.timeout_s = timeout_s
        self._verify = verify
        # The trainer has threads and a process group: neither survives a fork.
        context = multiprocessing.get_context("spawn")
        self._pool: ProcessPool = ProcessPool(max_workers=processes, context=context)

    def submit(self, prompt: Prompt, text: str) -> Future[object]:
        """A future with the verifier's value, or its exception (TimeoutError after `timeout_s`)."""
        future: Future[object] = self._pool.schedule(
            self._verify, args=(prompt, text), timeout=self.timeout_s
        )
        return future

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()
