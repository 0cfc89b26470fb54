"""Prompts -> rollout groups: split over engines, sample, verify, give every rank all of them.

Each block of an engine's ranks gets a consecutive part of the prompts. The first rank of a block
verifies and sends, so what the blocks send, in rank order, is the whole list.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import DataError
from passk_fast.model.tokenizer import encode_checked
from passk_fast.rollout.engine_protocol import Engine, check_prompt
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.verdict import Verify
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.rollout.wire import Samples, decode_samples, encode_samples, gather

if TYPE_CHECKING:
    import torch.distributed as dist
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class CollectStats:
    """What went wrong while collecting, over all ranks."""

    verifier_failures: int = 0
    """Responses whose verifier raised, ran out of time or gave no reward in [0, 1]. Each group
    samples one of them again; further ones count as wrong."""
    failure_kinds: Mapping[str, str] = field(default_factory=dict)
    """Class of exception -> the first of its kind in the order of prompts, in words."""
    aborted: int = 0
    """Responses that were stopped, or never started, because their group was decided."""
    verify_s: float = field(default=0.0, compare=False)
    """Seconds this rank spent verifying, or waiting for verifier processes, while it sampled."""
    idle_s: float = field(default=0.0, compare=False)
    """Seconds this rank waited for the other engines to finish."""
    engine_s: float = field(default=0.0, compare=False)
    """Seconds this rank's engine sampled; with dedicated rollout ranks, the slowest engine's."""
    prompt_tokens: int = field(default=0, compare=False)
    """Prompt tokens of this rank's engine, counted once per response."""
    cached_tokens: int = field(default=0, compare=False)
    """Those of them that the engine's prefix cache had."""

    def __add__(self, later: CollectStats) -> CollectStats:
        return CollectStats(
            verifier_failures=self.verifier_failures + later.verifier_failures,
            failure_kinds={**later.failure_kinds, **self.failure_kinds},
            aborted=self.aborted + later.aborted,
            verify_s=self.verify_s + later.verify_s,
            idle_s=self.idle_s + later.idle_s,
            engine_s=self.engine_s + later.engine_s,
            prompt_tokens=self.prompt_tokens + later.prompt_tokens,
            cached_tokens=self.cached_tokens + later.cached_tokens,
        )


def collect_groups(
    engine: Engine,
    request: SampleRequest,
    tokenizer: PreTrainedTokenizerBase,
    verify: Verify,
    *,
    temperature: float | None = None,
    top_p: float = 1.0,
    pool: VerifierPool | None = None,
    group: dist.ProcessGroup | None = None,
    judge_truncated: bool = True,
) -> tuple[list[RolloutGroup], CollectStats]:
    """N verified responses to each of P prompts: the same list, in order, on every rank.

    All ranks call this together with the same request. `temperature` defaults to
    rollout.temperature. Ranks talk over `group` (all ranks of the world; None: the default group).
    `judge_truncated` is that of `GroupTracker`.
    DataError, on all ranks alike, names a prompt that the tokenizer cannot encode or that is longer
    than rollout.max_prompt_tokens.
    """
    prompts = request.prompts
    prompt_ids = encode_prompts(prompts, tokenizer, engine.max_prompt_tokens)
    block = split_evenly(range(len(prompts)), engine.data_size, engine.data_rank)
    tracker = GroupTracker(
        [prompts[i] for i in block],
        request.num_rollouts,
        verify,
        pool=pool,
        zero_advantage_rows=request.zero_advantage_rows,
        judge_truncated=judge_truncated,
    )
    begin = time.perf_counter()
    engine.stream(
        [prompt_ids[i] for i in block],
        tracker,
        seed=request.seed,
        prompt_keys=[request.first_key + i for i in block],
        temperature=temperature,
        top_p=top_p,
    )
    samples = samples_of(tracker) if engine.tensor_rank == 0 else Samples([], [], 0, {})
    parts = [samples]
    end = time.perf_counter()
    if engine.data_size * engine.tensor_size > 1:
        parts = [decode_samples(data) for data in gather(encode_samples(samples), group)]
    groups, stats = make_groups(request, prompt_ids, parts)
    return groups, stats + CollectStats(
        verify_s=tracker.seconds,
        idle_s=time.perf_counter() - end,
        engine_s=end - begin,
        prompt_tokens=tracker.prompt_tokens,
        cached_tokens=tracker.cached_tokens,
    )


def samples_of(tracker: GroupTracker) -> Samples:
    """What the tracker holds, once its engine has no more work."""
    return Samples(
        rollouts=[rollout for group in tracker.rollouts for rollout in group],
        rewards=tracker.rewards.flatten().tolist(),
        failures=tracker.failures,
        failure_kinds=tracker.failure_kinds,
        aborted=tracker.aborted,
    )


def split_evenly(items: range, num_parts: int, part: int) -> range:
    """Part `part` of `num_parts` consecutive parts whose sizes differ by at most one.

    Example: range(5) in two parts is 0, 1 and 2, 3, 4.
    """
    return items[len(items) * part // num_parts : len(items) * (part + 1) // num_parts]


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[tuple[int, ...]]:
    """Token ids of each prompt; DataError names one that cannot be encoded or is above `limit`."""
    return [_encode(prompt, tokenizer, limit) for prompt in prompts]


def _encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[int, ...]:
    try:
        ids = prompt.token_ids or encode_checked(tokenizer, prompt.text)
    except DataError as error:
        raise DataError(f"Prompt {prompt.id!r}: {error}") from None
    check_prompt(len(ids), repr(prompt.id), limit)
    return tuple(ids)


def make_groups(
    request: SampleRequest, prompt_ids: Sequence[tuple[int, ...]], parts: Sequence[Samples]
) -> tuple[list[RolloutGroup], CollectStats]:
    """The groups of all prompts from the parts of all engines, in order; and their counts."""
    prompts, num_rollouts = request.prompts, request.num_rollouts
    rollouts = [rollout for part in parts for rollout in part.rollouts]
    rewards_PN = np.array([r for part in parts for r in part.rewards], dtype=np.float64)
    rewards_PN = rewards_PN.reshape(len(prompts), num_rollouts)
    groups = [
        RolloutGroup(
            prompt=prompt,
            prompt_ids=prompt_ids[p],
            rollouts=tuple(rollouts[p * num_rollouts : (p + 1) * num_rollouts]),
            rewards=rewards_PN[p],
        )
        for p, prompt in enumerate(prompts)
    ]
    return groups, CollectStats(
        verifier_failures=sum(part.failures for part in parts),
        failure_kinds=_first_of_each(part.failure_kinds for part in parts),
        aborted=sum(part.aborted for part in parts),
    )


def _first_of_each(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        found = {**part, **found}
    return found
