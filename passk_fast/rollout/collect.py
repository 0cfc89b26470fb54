"""Prompts -> rollout groups: split over engines, sample, verify, give every rank all of them.

Prompts are dealt out to the engines' blocks in consecutive parts; the first rank of each block
verifies and sends, so that what the blocks send, in rank order, is the whole list.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.data.types import Prompt, Rollout, RolloutGroup, SampleRequest
from passk_fast.errors import DataError
from passk_fast.model.tokenizer import encode_checked
from passk_fast.rollout.groups import GroupTracker, VerifierPool, Verify
from passk_fast.rollout.vllm.engine import check_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sampler(Protocol):
    """What collecting needs of `RolloutEngine`."""

    data_rank: int
    data_size: int
    tensor_rank: int
    tensor_size: int
    max_prompt_tokens: int

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        watch: GroupTracker,
        *,
        seed: int,
        prompt_keys: Sequence[int],
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CollectStats:
    """What went wrong while collecting, over all ranks."""

    verifier_failures: int = 0
    """Samples whose verifier raised, ran out of time or gave no reward in [0, 1]. Each group may
    sample one anew; further ones count as wrong."""
    first_failure: str = ""
    """The first of them in the order of prompts, in words; empty when there is none."""
    aborted: int = 0
    """Responses that were stopped, or never begun, because their group was decided."""
    verify_s: float = field(default=0.0, compare=False)
    """Seconds this rank spent on verifying, or waiting for verdicts, while it sampled."""
    idle_s: float = field(default=0.0, compare=False)
    """Seconds it waited for the other engines to finish."""
    engine_s: float = field(default=0.0, compare=False)
    """Seconds its engine sampled; of the slowest one where engines have ranks of their own."""
    prompt_tokens: int = field(default=0, compare=False)
    """Prompt tokens of the responses of this rank's engine, each response's counted."""
    cached_tokens: int = field(default=0, compare=False)
    """Those of them that the engine's prefix cache had."""

    def __add__(self, later: CollectStats) -> CollectStats:
        return CollectStats(
            verifier_failures=self.verifier_failures + later.verifier_failures,
            first_failure=self.first_failure or later.first_failure,
            aborted=self.aborted + later.aborted,
            verify_s=self.verify_s + later.verify_s,
            idle_s=self.idle_s + later.idle_s,
            engine_s=self.engine_s + later.engine_s,
            prompt_tokens=self.prompt_tokens + later.prompt_tokens,
            cached_tokens=self.cached_tokens + later.cached_tokens,
        )


@dataclass(frozen=True)
class Samples:
    """One rank's verified rollouts, prompt after prompt."""

    rollouts: list[Rollout]
    rewards: list[float]
    failures: int
    first_failure: str
    aborted: int = 0


def collect_groups(
    engine: Sampler,
    draw: SampleRequest,
    tokenizer: PreTrainedTokenizerBase,
    verify: Verify,
    *,
    temperature: float | None = None,
    top_p: float = 1.0,
    pool: VerifierPool | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[list[RolloutGroup], CollectStats]:
    """N verified responses to each of P prompts: the same list, in order, on every rank.

    All ranks call this together with the same draw. `temperature` defaults to rollout.temperature.
    Ranks talk over `group` (all ranks of the world; None: the default group).
    DataError, on all ranks alike, names a prompt that the tokenizer cannot encode or that is above
    rollout.max_prompt_tokens.
    """
    prompts = draw.prompts
    prompt_ids = encode_prompts(prompts, tokenizer, engine.max_prompt_tokens)
    block = split_evenly(range(len(prompts)), engine.data_size, engine.data_rank)
    watch = GroupTracker(
        [prompts[i] for i in block],
        draw.num_rollouts,
        verify,
        pool=pool,
        zero_advantage_rows=draw.zero_advantage_rows,
    )
    begin = time.perf_counter()
    engine.stream(
        [prompt_ids[i] for i in block],
        watch,
        seed=draw.seed,
        prompt_keys=[draw.first_key + i for i in block],
        temperature=temperature,
        top_p=top_p,
    )
    samples = samples_of(watch) if engine.tensor_rank == 0 else Samples([], [], 0, "")
    parts = [samples]
    end = time.perf_counter()
    if engine.data_size * engine.tensor_size > 1:
        parts = [decode_samples(data) for data in gather(encode_samples(samples), group)]
    groups, stats = make_groups(draw, prompt_ids, parts)
    return groups, stats + CollectStats(
        verify_s=watch.seconds,
        idle_s=time.perf_counter() - end,
        engine_s=end - begin,
        prompt_tokens=watch.prompt_tokens,
        cached_tokens=watch.cached_tokens,
    )


def samples_of(watch: GroupTracker) -> Samples:
    """What a watch has seen, once its engine has no more work."""
    return Samples(
        rollouts=[rollout for group in watch.rollouts for rollout in group],
        rewards=watch.rewards.flatten().tolist(),
        failures=watch.failures,
        first_failure=watch.first_failure,
        aborted=watch.aborted,
    )


def split_evenly(items: range, num_parts: int, part: int) -> range:
    """The `part`-th of `num_parts` consecutive parts whose sizes differ by at most one.

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
        ids = encode_checked(tokenizer, prompt.text)
    except DataError as error:
        raise DataError(f"Prompt {prompt.id!r}: {error}") from None
    check_prompt(len(ids), repr(prompt.id), limit)
    return tuple(ids)


def make_groups(
    draw: SampleRequest, prompt_ids: Sequence[tuple[int, ...]], parts: Sequence[Samples]
) -> tuple[list[RolloutGroup], CollectStats]:
    """The groups of all prompts from the parts of all engines, in order; and their counts."""
    prompts, num_rollouts = draw.prompts, draw.num_rollouts
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
        first_failure=next((part.first_failure for part in parts if part.failures), ""),
        aborted=sum(part.aborted for part in parts),
    )


_NO_EXPERTS = np.empty((0, 0, 0), np.uint8)


def encode_samples(samples: Samples) -> np.ndarray:
    """Samples as uint8 [bytes]: nine int64 sizes, then one plain array after another.

    Log-probs travel as float32, which is what vLLM computes; rewards as float64; texts as UTF-8.
    """
    rollouts = samples.rollouts
    texts = [r.text.encode("utf-8", "surrogatepass") for r in rollouts]
    failure = samples.first_failure.encode("utf-8", "replace")
    tokens = np.concatenate([np.empty(0, "<i4"), *(np.array(r.token_ids, "<i4") for r in rollouts)])
    logprobs = np.concatenate(
        [np.empty(0, "<f4"), *(np.array(r.logprobs, "<f4") for r in rollouts)]
    )
    text_bytes = sum(map(len, texts))
    sizes = [len(rollouts), len(tokens), text_bytes, len(failure)]
    routed = [r.routed_experts for r in rollouts]
    first = next((experts for experts in routed if experts is not None), _NO_EXPERTS)
    sizes += [samples.failures, samples.aborted, *first.shape[1:], first.itemsize]
    sections = [
        np.array(sizes, "<i8").tobytes(),
        np.array(samples.rewards, "<f8").tobytes(),
        np.array([len(r.token_ids) for r in rollouts], "<i4").tobytes(),
        np.array([len(text) for text in texts], "<i4").tobytes(),
        tokens.astype("<i4").tobytes(),
        logprobs.astype("<f4").tobytes(),
        np.array([r.finished for r in rollouts], "u1").tobytes(),
        np.array([0 if experts is None else len(experts) for experts in routed], "<i4").tobytes(),
        *texts,
        failure,
        *(experts.tobytes() for experts in routed if experts is not None),
    ]
    return np.frombuffer(b"".join(sections), dtype=np.uint8)


def decode_samples(data: np.ndarray) -> Samples:
    """The inverse of `encode_samples`."""
    raw, offset = data.tobytes(), 0

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal offset
        part = np.frombuffer(raw, dtype, count, offset)
        offset += part.nbytes
        return part

    count, num_tokens, text_bytes, failure_bytes, failures, aborted = take(6, "<i8").tolist()
    layers, top_k, width = take(3, "<i8").tolist()
    rewards = take(count, "<f8").tolist()
    token_ends = np.cumsum(take(count, "<i4")).tolist()
    text_ends = np.cumsum(take(count, "<i4")).tolist()
    tokens = take(num_tokens, "<i4").tolist()
    logprobs = take(num_tokens, "<f4").tolist()
    finished = take(count, "u1").astype(bool).tolist()
    routed_rows = take(count, "<i4").tolist()
    texts = take(text_bytes, "u1").tobytes()
    first_failure = take(failure_bytes, "u1").tobytes().decode("utf-8")
    rollouts = []
    for r in range(count):
        span = slice(token_ends[r - 1] if r else 0, token_ends[r])
        text = texts[text_ends[r - 1] if r else 0 : text_ends[r]]
        experts = take(routed_rows[r] * layers * top_k, "u1" if width == 1 else "<i2")
        rollouts.append(
            Rollout(
                token_ids=tuple(tokens[span]),
                logprobs=tuple(logprobs[span]),
                text=text.decode("utf-8", "surrogatepass"),
                finished=finished[r],
                routed_experts=experts.reshape(-1, layers, top_k) if routed_rows[r] else None,
            )
        )
    return Samples(
        rollouts=rollouts,
        rewards=rewards,
        failures=failures,
        first_failure=first_failure,
        aborted=aborted,
    )


def gather(data: np.ndarray, group: dist.ProcessGroup | None = None) -> list[np.ndarray]:
    """uint8 [bytes] of every rank of the group (None: all), in rank order; lengths may differ."""
    world = dist.get_world_size(group)
    size = torch.tensor([len(data)])
    all_sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(all_sizes, size, group=group)
    sizes = [int(size) for size in all_sizes]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = torch.from_numpy(data.copy())
    everything = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(everything, padded, group=group)
    return [part[:size].numpy() for part, size in zip(everything, sizes, strict=True)]
