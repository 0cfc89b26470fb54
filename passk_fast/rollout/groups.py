"""Groups while they are being sampled: verify each response as it ends, stop what is decided.

A `GroupTracker` takes every response that ended in an engine step, has it verified, and answers
with what to abort and what to sample again. It knows no engine: the engine drives it. With a
`VerifierPool` the rewards of one step are read after the next, so verifying overlaps decoding
while the outcome still depends on the order of events alone, not on their timing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from passk_fast.data.types import Prompt, Rollout
from passk_fast.rollout.verifier_pool import VerifierPool, Verify

Key = tuple[int, int]
"""(index of the prompt, number of the response). Numbers from N on replace responses whose verifier
failed."""

MISSING = Rollout(token_ids=(), logprobs=(), text="", finished=False)
"""Stands for a response that was aborted, or never started."""


@dataclass
class StepActions:
    """What the engine does after a step."""

    abort: list[Key] = field(default_factory=list)
    add: list[Key] = field(default_factory=list)
    waiting: bool = False
    """Rewards are outstanding: call `GroupTracker.step` again, even without a response."""


def reward_of(value: object) -> float:
    """The value as a reward; ValueError unless it is a number in [0, 1]."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        reward = float(value)
        if math.isfinite(reward) and 0.0 <= reward <= 1.0:
            return reward
    raise ValueError(f"the verifier gave {value!r}, not a reward in [0, 1]")


class GroupTracker:
    """P groups of N responses while they are sampled.

    `rewards` is float64 [P, N], NaN where there is none (yet); `rollouts` is [P][N].
    """

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
        """`zero_advantage_rows` is bool [N + 1]: the counts of correct responses at which every
        advantage is zero. A group that can only end at one of them is stopped, unless it has a
        reward other than 0 and 1. None: no group is stopped.

        A response whose verifier fails is sampled again, `retries` times per group at most;
        further ones count as wrong.
        """
        count = len(prompts)
        self.prompts, self.num_rollouts = prompts, num_rollouts
        self.rewards = np.full((count, num_rollouts), np.nan)
        self.rollouts = [[MISSING] * num_rollouts for _ in range(count)]
        self.failures = 0
        """Responses whose verifier failed."""
        self.first_failure = ""
        """The first of them in the order of prompts, in words."""
        self.aborted = 0
        """Responses that were stopped, or never started, because their group was decided."""
        self.seconds = 0.0
        """Time spent verifying, or waiting for the pool."""
        self.prompt_tokens = self.cached_tokens = 0
        """Prompt tokens of all responses, and those found in the prefix cache; the engine counts
        them."""
        self._verify, self._pool = verify, pool
        self._zero_advantage_rows, self._retries = zero_advantage_rows, retries
        self._slot = {(p, n): n for p in range(count) for n in range(num_rollouts)}
        self._added = [0] * count
        self._running = set(self._slot)
        self._first_failed: tuple[int, int] | None = None
        self._pending: list[tuple[Key, Future[object]]] = []

    def step(self, ended: Sequence[tuple[Key, Rollout]]) -> StepActions:
        """Take the responses that ended in an engine step; returns what to abort and to add."""
        start = time.perf_counter()
        try:
            return self._step(ended)
        finally:
            self.seconds += time.perf_counter() - start

    def _step(self, ended: Sequence[tuple[Key, Rollout]]) -> StepActions:
        actions = StepActions()
        touched: set[int] = set()
        if self._pool is None:
            for key, rollout in ended:
                touched.add(key[0])
                self._place(key, rollout)
                self._judge(key, partial(self._value, key), actions)
        else:
            for key, future in self._pending:
                touched.add(key[0])
                self._judge(key, future.result, actions)
            self._pending = []
            for key, rollout in ended:
                self._place(key, rollout)
                future = self._pool.submit(self.prompts[key[0]], rollout.text)
                self._pending.append((key, future))
        for p in sorted(touched):
            self._stop_if_decided(p, actions)
        actions.waiting = bool(self._pending)
        return actions

    def _place(self, key: Key, rollout: Rollout) -> None:
        self.rollouts[key[0]][self._slot[key]] = rollout

    def _value(self, key: Key) -> object:
        p, slot = key[0], self._slot[key]
        return self._verify(self.prompts[p], self.rollouts[p][slot].text)

    def _judge(self, key: Key, value: Callable[[], object], actions: StepActions) -> None:
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
                actions.add.append(again)
                return
            reward = 0.0
        self.rewards[p, slot] = reward

    def _note_failure(self, p: int, slot: int, error: Exception) -> None:
        self.failures += 1
        if self._first_failed is None or (p, slot) < self._first_failed:
            self._first_failed = (p, slot)
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.first_failure = f"prompt {self.prompts[p].id!r}: {kind}{error}"

    def _stop_if_decided(self, p: int, actions: StepActions) -> None:
        """Abort the rest of a group when its advantages are zero however it ends."""
        rows = self._zero_advantage_rows
        if rows is None:
            return
        rewards = self.rewards[p]
        known = rewards[~np.isnan(rewards)]
        missing = self.num_rollouts - len(known)
        correct = int((known == 1.0).sum())
        if not np.isin(known, (0.0, 1.0)).all():
            return  # the rows are those of a table for binary rewards
        if not missing or not rows[correct : correct + missing + 1].all():
            return
        running = sorted(key for key in self._running if key[0] == p)
        actions.abort.extend(running)
        actions.add[:] = [key for key in actions.add if key[0] != p]
        self._running.difference_update(running)
        self._pending = [item for item in self._pending if item[0][0] != p]
        self.aborted += missing
        for slot in np.flatnonzero(np.isnan(rewards)):
            self.rollouts[p][slot] = MISSING
