"""Groups while they are being sampled: verify each response as it ends, stop what is decided.

A `GroupTracker` takes every response that ended in an engine step, has it verified, and answers
with what to abort and what to sample again. It knows no engine: the engine drives it. With a
`VerifierPool` the rewards of one step are read after the next, so verifying overlaps decoding
while the outcome still depends on the order of events alone, not on their timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from passk_fast.data.types import Prompt, Rollout
from passk_fast.rollout.verdict import GroupVerifier, VerifierError, Verify, rewards_by
from passk_fast.rollout.verifier_pool import VerifierPool

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
        judge_truncated: bool = True,
    ) -> None:
        """`zero_advantage_rows` is bool [N + 1]: the counts of correct responses at which every
        advantage is zero. A group that can only end at one of them is stopped, unless it has a
        reward other than 0 and 1. None: no group is stopped.

        With a `GroupVerifier` the pool judges what must not run in this process, and the whole of
        a group at once where that is wanted; with any other verifier, everything.

        A response whose verifier fails is sampled again, `retries` times per group at most;
        further ones count as wrong. Without `judge_truncated` a response that was cut at the token
        limit gets 0, and no verifier sees it.
        """
        count = len(prompts)
        self.prompts, self.num_rollouts = prompts, num_rollouts
        self.rewards = np.full((count, num_rollouts), np.nan)
        self.rollouts = [[MISSING] * num_rollouts for _ in range(count)]
        self.failures = 0
        """Responses whose verifier failed."""
        self.failure_kinds: dict[str, str] = {}
        """Class of exception -> the first of its kind in the order of prompts, in words."""
        self.aborted = 0
        """Responses that were stopped, or never started, because their group was decided."""
        self.seconds = 0.0
        """Time spent verifying, or waiting for the pool."""
        self.prompt_tokens = self.cached_tokens = 0
        """Prompt tokens of all responses, and those found in the prefix cache; the engine counts
        them."""
        self._verify, self._pool = verify, pool
        self._zero_advantage_rows, self._retries = zero_advantage_rows, retries
        self._judge_truncated = judge_truncated
        self._slot = {(p, n): n for p in range(count) for n in range(num_rollouts)}
        self._added = [0] * count
        self._running = set(self._slot)
        self._first_failed: dict[str, tuple[int, int]] = {}
        self._held: dict[int, list[Key]] = {}
        """Ended responses by group, until the last of it has ended."""
        self._pending: list[tuple[list[Key], Future[list[float]]]] = []

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
        pending, self._pending = self._pending, []
        for keys, future in pending:
            touched.add(keys[0][0])
            self._judge(keys, future.result, actions)
        for key, rollout in ended:
            p = key[0]
            self.rollouts[p][self._slot[key]] = rollout
            self._running.discard(key)
            if not (rollout.finished or self._judge_truncated):
                self.rewards[p, self._slot[key]] = 0.0
                touched.add(p)
            elif self._wants_groups(p):
                self._held.setdefault(p, []).append(key)
            else:
                self._submit([key], actions, touched)
        for p, keys in list(self._held.items()):
            if not any(key[0] == p for key in self._running):
                del self._held[p]
                self._submit(sorted(keys), actions, touched)
        for p in sorted(touched):
            self._stop_if_decided(p, actions)
        actions.waiting = bool(self._pending)
        return actions

    def _wants_groups(self, p: int) -> bool:
        verify = self._verify
        return isinstance(verify, GroupVerifier) and verify.wants_groups(self.prompts[p])

    def _submit(self, keys: list[Key], actions: StepActions, touched: set[int]) -> None:
        """Have responses of one group judged: by the pool, or here and now."""
        p, verify = keys[0][0], self._verify
        prompt = self.prompts[p]
        texts = [self.rollouts[p][self._slot[key]].text for key in keys]
        here = isinstance(verify, GroupVerifier) and not verify.needs_process(prompt)
        if self._pool is not None and not here:
            self._pending.append((keys, self._pool.submit(prompt, texts)))
        else:
            touched.add(p)
            self._judge(keys, partial(rewards_by, verify, prompt, texts), actions)

    def _judge(
        self, keys: list[Key], rewards: Callable[[], list[float]], actions: StepActions
    ) -> None:
        p = keys[0][0]
        try:
            values: list[float] = rewards()
        except VerifierError as error:
            for key in keys:
                self._fail(p, self._slot[key], error, actions)
            return
        for key, reward in zip(keys, values, strict=True):
            self.rewards[p, self._slot[key]] = reward

    def _fail(self, p: int, slot: int, error: VerifierError, actions: StepActions) -> None:
        """Count a failure; sample another response in its place, or call it wrong."""
        self.failures += 1
        if (p, slot) < self._first_failed.get(error.kind, (p + 1, 0)):
            self._first_failed[error.kind] = (p, slot)
            self.failure_kinds[error.kind] = f"prompt {self.prompts[p].id!r}: {error.words()}"
        if self._added[p] < self._retries:
            again = (p, self.num_rollouts + self._added[p])
            self._added[p] += 1
            self._slot[again] = slot
            self._running.add(again)
            actions.add.append(again)
        else:
            self.rewards[p, slot] = 0.0

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
        self._pending = [item for item in self._pending if item[0][0][0] != p]
        self._held.pop(p, None)
        self.aborted += missing
        for slot in np.flatnonzero(np.isnan(rewards)):
            self.rollouts[p][slot] = MISSING
