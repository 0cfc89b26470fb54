"""One rank's verified responses as bytes, and the exchange of bytes between ranks.

Nothing is pickled: the message is nine sizes, then one plain array after another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.data.types import Rollout

_NO_EXPERTS = np.empty((0, 0, 0), np.uint8)


@dataclass(frozen=True)
class Samples:
    """One rank's verified responses, prompt after prompt."""

    rollouts: list[Rollout]
    rewards: list[float]
    failures: int
    failure_kinds: dict[str, str]
    """Class of exception -> the first of its kind, in words."""
    aborted: int = 0


def encode_samples(samples: Samples) -> np.ndarray:
    """Samples as uint8 [bytes]: nine int64 sizes, then one plain array after another.

    Log-probs travel as float32, which is what vLLM computes; rewards as float64; texts as UTF-8.
    """
    rollouts = samples.rollouts
    texts = [r.text.encode("utf-8", "surrogatepass") for r in rollouts]
    failure = json.dumps(samples.failure_kinds).encode()
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
    failure_kinds: dict[str, str] = json.loads(take(failure_bytes, "u1").tobytes())
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
        failure_kinds=failure_kinds,
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
