"""Groups while they are being sampled: verify each response as it ends, stop what is decided.

A `GroupTracker` sees every response that ends in an engine step, has it verified, and answers with
what to abort and what to sample anew. It knows nothing of vLLM: the engine drives it. With a pool
of verifier processes the verdicts of one step are read after the next, so verifying overlaps
decoding while the outcome still depends on the order of events alone, not on their timing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from passk_fast.data.types import Prompt, Rollout

Verify = Callable[[Prompt, str], float]
Key = tuple[int, int]
"""(index of the prompt, number of its response); numbers from N on are samples in place of those
whose verifier failed."""

MISSING = Rollout(token_ids=(), logprobs=(), text="", finished=False)
"""Stands for a response that was aborted, or never begun."""


@dataclass
class StepActions:
    """What the engine does after a step."""

    abort: list[Key] = field(default_factory=list)
    add: list[Key] = field(default_factory=list)
    waiting: bool = False
    """Verdicts are outstanding: come again, even without a response."""


class VerifierPool:
    """Verifies in processes of their own; one that runs over `timeout_s` is killed."""

    def __init__(self, verify: Verify, processes: int, timeout_s: float) -> None:
        """`verify` must be picklable. Processes start with the first response."""
        import multiprocessing

        from pebble import ProcessPool

        self._verify, self.timeout_s = verify, timeout_s
        # The trainer has threads and a process group: neither survives a fork.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=processes, context=context)

    def submit(self, prompt: Prompt, text: str) -> Future:
        """A future with the verifier's value, or its exception."""
        return self._pool.schedule(self._verify, args=(prompt, text), timeout=self.timeout_s)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()


def reward_of(value: Any) -> float:
    """The value as a reward; ValueError unless it is a number in [0, 1]."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        reward = float(value)
        if math.isfinite(reward) and 0.0 <= reward <= 1.0:
            return reward
    raise ValueError(f"the verifier gave {value!r}, not a reward in [0, 1]")


class GroupTracker:
    """P groups of N responses on their way, with rewards [P, N]; NaN where none was sampled."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        num_rollouts: int,
        verify: Verify,
        *,
        pool: VerifierPool | None = None,
        zero_advantage_rows: np.ndarray | None = None,
        retries: int = 1,
    ) -> None:
        """`zero_advantage_rows` bool [N + 1]: counts of correct responses at which the estimator has no
        gradient; groups that must end in one are stopped, unless a reward other than 0 and 1 was
        seen. None: never stop. A response whose verifier fails is sampled anew, `retries` times a
        group at most.
        """
        count = len(prompts)
        self.prompts, self.num_rollouts = prompts, num_rollouts
        self.rewards = np.full((count, num_rollouts), np.nan)
        self.rollouts = [[MISSING] * num_rollouts for _ in range(count)]
        self.failures = 0
        self.first_failure = ""
        self.aborted = 0
        self.seconds = 0.0
        self.prompt_tokens = self.cached_tokens = 0
        """Prompt tokens of all responses, and those whose keys and values were found; the engine
        counts them."""
        self._verify, self._pool = verify, pool
        self._dead, self._retries = zero_advantage_rows, retries
        self._slot = {(p, n): n for p in range(count) for n in range(num_rollouts)}
        self._added = [0] * count
        self._running = set(self._slot)
        self._first_failed: tuple[int, int] | None = None
        self._pending: list[tuple[Key, Future]] = []

    def step(self, ended: Sequence[tuple[Key, Rollout]]) -> StepActions:
        """Take the responses that ended in an engine step; returns what to abort and to add.

        `seconds` grows by the time this took: verifying, or waiting for verdicts.
        """
        start = time.perf_counter()
        try:
            return self._step(ended)
        finally:
            self.seconds += time.perf_counter() - start

    def _step(self, ended: Sequence[tuple[Key, Rollout]]) -> StepActions:
        orders = StepActions()
        touched: set[int] = set()
        if self._pool is None:
            for key, rollout in ended:
                touched.add(key[0])
                self._place(key, rollout)
                self._judge(key, partial(self._value, key), orders)
        else:
            for key, future in self._pending:
                touched.add(key[0])
                self._judge(key, future.result, orders)
            self._pending = []
            for key, rollout in ended:
                self._place(key, rollout)
                future = self._pool.submit(self.prompts[key[0]], rollout.text)
                self._pending.append((key, future))
        for p in sorted(touched):
            self._stop_if_decided(p, orders)
        orders.waiting = bool(self._pending)
        return orders

    def _place(self, key: Key, rollout: Rollout) -> None:
        self.rollouts[key[0]][self._slot[key]] = rollout

    def _value(self, key: Key) -> Any:
        p, slot = key[0], self._slot[key]
        return self._verify(self.prompts[p], self.rollouts[p][slot].text)

    def _judge(self, key: Key, value: Callable[[], Any], orders: StepActions) -> None:
        p, slot = key[0], self._slot[key]
        self._running.discard(key)
        try:
            reward = reward_of(value())
        except (
            Exception
        ) as error:  # a user's verifier may raise anything; it is counted, not hidden
            self._note_failure(p, slot, error)
            if self._added[p] < self._retries:
                again = (p, self.num_rollouts + self._added[p])
                self._added[p] += 1
                self._slot[again] = slot
                self._running.add(again)
                orders.add.append(again)
                return
            reward = 0.0
        self.rewards[p, slot] = reward

    def _note_failure(self, p: int, slot: int, error: Exception) -> None:
        self.failures += 1
        if self._first_failed is None or (p, slot) < self._first_failed:
            self._first_failed = (p, slot)
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.first_failure = f"prompt {self.prompts[p].id!r}: {kind}{error}"

    def _stop_if_decided(self, p: int, orders: StepActions) -> None:
        """Abort the rest of a group when every way it can end is dead."""
        if self._dead is None:
            return
        rewards = self.rewards[p]
        known = rewards[~np.isnan(rewards)]
        open_ = self.num_rollouts - len(known)
        correct = int((known == 1.0).sum())
        if not np.isin(known, (0.0, 1.0)).all():
            return  # the table speaks of right and wrong alone
        if not open_ or not self._dead[correct : correct + open_ + 1].all():
            return
        running = sorted(key for key in self._running if key[0] == p)
        orders.abort.extend(running)
        orders.add[:] = [key for key in orders.add if key[0] != p]
        self._running.difference_update(running)
        self._pending = [item for item in self._pending if item[0][0] != p]
        self.aborted += open_
        for slot in np.flatnonzero(np.isnan(rewards)):
            self.rollouts[p][slot] = MISSING
