"""Prompts -> rollout groups: split over engines, sample, verify, and give every rank all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.batch import Prompt, Rollout, RolloutGroup
from passk_fast.rollout.engine import RolloutEngine
from passk_fast.tokenizer import encode_checked


@dataclass(frozen=True, kw_only=True)
class CollectStats:
    """What went wrong while collecting, summed over engines."""

    verifier_failures: int
    """Samples whose verifier raised or gave no reward in [0, 1]; they count as wrong."""


def collect_groups(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    verify: Callable[[Prompt, str], float],
    *,
    num_rollouts: int,
    seed: int,
) -> tuple[list[RolloutGroup], CollectStats]:
    """N verified responses to each of P prompts, the same list in the same order on all ranks.

    Raises:
        DataError: a prompt holds text that the tokenizer cannot encode, or is too long.
    """
    encoded = [tuple(encode_checked(tokenizer, prompt.text)) for prompt in prompts]
    bounds = [len(prompts) * r // engine.data_size for r in range(engine.data_size + 1)]
    mine = range(bounds[engine.data_rank], bounds[engine.data_rank + 1])
    sampled = engine.sample(
        [encoded[i] for i in mine], num_rollouts=num_rollouts, seed=seed, prompt_keys=list(mine)
    )
    rewards: list[list[float]] = []
    failures = 0
    for i, rollouts in zip(mine, sampled, strict=True):
        row = [_reward(verify, prompts[i], rollout.text) for rollout in rollouts]
        failures += row.count(None)
        rewards.append([0.0 if reward is None else reward for reward in row])
    if dist.get_world_size() > 1 and engine.data_size > 1:
        sampled, rewards, failures = _exchange(engine, sampled, rewards, failures, num_rollouts)
    groups = [
        RolloutGroup(
            prompt=prompt,
            prompt_ids=ids,
            rollouts=tuple(rollouts),
            rewards=np.array(row, dtype=np.float64),
        )
        for prompt, ids, rollouts, row in zip(prompts, encoded, sampled, rewards, strict=True)
    ]
    return groups, CollectStats(verifier_failures=failures)


def _reward(verify: Callable[[Prompt, str], float], prompt: Prompt, text: str) -> float | None:
    """The verdict, or None where the verifier raised or gave something other than [0, 1]."""
    try:
        value = float(verify(prompt, text))
    except Exception:  # a user's verifier may raise anything; the sample is counted, not hidden
        return None
    return value if math.isfinite(value) and 0.0 <= value <= 1.0 else None


def _gather_rows(rows: Tensor, engine: RolloutEngine) -> list[Tensor]:
    """All engines' 2-D float64 tables, in data-parallel order; row counts may differ."""
    shape = torch.tensor(rows.shape, dtype=torch.int64)
    shapes = [torch.zeros_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    height = max(int(s[0]) for s in shapes)
    width = max(int(s[1]) for s in shapes)
    padded = torch.zeros(height, width, dtype=rows.dtype)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    gathered = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(gathered, padded)
    tensor_size = len(shapes) // engine.data_size
    return [
        gathered[r][: int(shapes[r][0]), : int(shapes[r][1])]
        for r in range(0, len(shapes), tensor_size)
    ]


def _exchange(
    engine: RolloutEngine,
    sampled: list[list[Rollout]],
    rewards: list[list[float]],
    failures: int,
    num_rollouts: int,
) -> tuple[list[list[Rollout]], list[list[float]], int]:
    """Every engine's rollouts on every rank. One row a rollout:
    [length, finished, reward, tokens..., log-probs...]; float64 holds each exactly."""
    flat = [rollout for group in sampled for rollout in group]
    scores = [reward for row in rewards for reward in row]
    width = max((len(r.token_ids) for r in flat), default=0)
    rows = torch.zeros(len(flat), 3 + 2 * width, dtype=torch.float64)
    for row, rollout, reward in zip(rows, flat, scores, strict=True):
        length = len(rollout.token_ids)
        row[:3] = torch.tensor([length, rollout.finished, reward], dtype=torch.float64)
        row[3 : 3 + length] = torch.tensor(rollout.token_ids, dtype=torch.float64)
        row[3 + width : 3 + width + length] = torch.tensor(rollout.logprobs, dtype=torch.float64)
    everything: list[tuple[Rollout, float]] = []
    for table in _gather_rows(rows, engine):
        everything += _decode_rows(table, engine)
    total = torch.tensor(float(failures if engine.tensor_rank == 0 else 0))
    dist.all_reduce(total)
    groups = [everything[i : i + num_rollouts] for i in range(0, len(everything), num_rollouts)]
    return (
        [[rollout for rollout, _ in group] for group in groups],
        [[reward for _, reward in group] for group in groups],
        int(total),
    )


def _decode_rows(table: Tensor, engine: RolloutEngine) -> list[tuple[Rollout, float]]:
    width = (table.shape[1] - 3) // 2
    decoded = []
    for row in table.tolist():
        length = int(row[0])
        tokens = tuple(int(t) for t in row[3 : 3 + length])
        decoded.append((tokens, tuple(row[3 + width : 3 + width + length]), bool(row[1]), row[2]))
    texts = engine.decode([tokens for tokens, *_ in decoded])
    return [
        (Rollout(token_ids=tokens, logprobs=logprobs, text=text, finished=finished), reward)
        for (tokens, logprobs, finished, reward), text in zip(decoded, texts, strict=True)
    ]
