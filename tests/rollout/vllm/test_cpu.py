"""What replaces vLLM's own parts on CPU gives what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.data.types import Prompt, SampleRequest
from passk_fast.rollout.collect import split_evenly
from passk_fast.rollout.vllm.cpu.sampler import SeededDraws
from tests.ranks import RankPool
from tests.rollout.vllm.scheduling import Scheduling

W, S = "tests.rollout.vllm.workers:", "tests.rollout.vllm.scheduling:"
PROMPTS = [[3, 5, 7], [4], [9, 9, 9, 9, 3], [12, 11, 10, 9, 8, 7], [6, 6]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def take(draws: SeededDraws, generators: dict[int, torch.Generator], batch: int) -> torch.Tensor:
    """The seeds of a step, with a draw a row."""
    seeds_B = draws.seeds(generators, batch)
    for request in draws._requests:
        request.logprobs.append(0.0)
    return seeds_B


def test_a_draw_depends_on_the_seed_and_its_number_alone() -> None:
    alone = SeededDraws()
    g = generator(7)
    expected = [int(take(alone, {0: g}, 1)[0]) for _ in range(6)]
    assert len(set(expected)) == 6
    # The same request among others that come, move to other rows, and go; once it is away itself.
    draws, mine, others = SeededDraws(), generator(7), [generator(s) for s in range(3)]
    seen = [int(take(draws, {0: mine}, 1)[0])]
    seen.append(int(take(draws, {0: others[0], 1: mine}, 2)[1]))
    take(draws, {0: others[0], 1: others[1]}, 2)
    seen.append(int(take(draws, {2: mine, 0: others[1]}, 4)[2]))
    seen += [int(take(draws, {1: mine, 2: others[2]}, 3)[1]) for _ in range(3)]
    assert seen == expected


def test_requests_of_the_next_batch_start_anew() -> None:
    draws, g = SeededDraws(), generator(7)
    first = [int(take(draws, {0: g}, 1)[0]) for _ in range(3)]
    draws.forget()
    again = generator(7)
    assert [int(take(draws, {0: again}, 1)[0]) for _ in range(3)] == first


def test_seeds_are_spread_evenly_and_rows_without_generator_are_random() -> None:
    draws = SeededDraws()
    rows = {i: generator(i) for i in range(0, 2000, 2)}
    taken = np.stack([take(draws, rows, 2000).numpy() for _ in range(10)])
    own = taken[:, ::2] / 2**31
    assert ((own >= 0) & (own < 1)).all()
    assert len(np.unique(own)) > 9990
    # The mean of 10,000 uniform numbers has a standard error of 0.0029.
    assert abs(own.mean() - 0.5) < 0.015
    assert np.abs(np.corrcoef(own)[~np.eye(10, dtype=bool)]).max() < 0.15
    assert len(np.unique(taken[:, 1::2])) > 9990


def test_two_requests_of_one_seed_are_refused() -> None:
    with pytest.raises(AssertionError, match="one seed"):
        SeededDraws().seeds({0: generator(1), 1: generator(1)}, 2)


@pytest.mark.slow
@pytest.mark.sample
def test_short_scheduling_and_preemption_change_no_response(pool: RankPool, model_a: str) -> None:
    """Responses cross several blocks; a cache of a few blocks makes vLLM begin some anew."""
    options = {"num_rollouts": 8, "seed": 3}
    limits = {"max_response_tokens": 80}
    pool.run(W + "start", model_a, 1, **limits)
    short = _both_ways(pool, "sample", PROMPTS, **options)
    assert max(len(r.token_ids) for group in short.result for r in group) > 64
    # 2 layers, keys and values, 2 heads of 32 float32: 32 KiB a block of 32 tokens.
    pool.run(W + "start", model_a, 1, kv_cache_gib=12 / 2**15, **limits)
    crowded = _both_ways(pool, "sample", PROMPTS, **options)
    assert short.preempted == 0 < crowded.preempted
    for group, other in zip(short.result, crowded.result, strict=True):
        assert [r.token_ids for r in group] == [r.token_ids for r in other]


@pytest.mark.slow
@pytest.mark.sample
def test_short_scheduling_where_requests_wait_and_are_aborted(pool: RankPool, model_a: str) -> None:
    prompts = [Prompt(id=str(i), text="abcd"[: 1 + i % 4], answer="", task="t") for i in range(12)]
    pool.run(W + "start", model_a, 1, max_num_seqs=7, max_response_tokens=48)
    dead = zero_advantage_rows(table("passk", 8, 6))
    draw = SampleRequest(prompts=prompts, num_rollouts=8, seed=2, zero_advantage_rows=dead)
    seen = _both_ways(pool, "collect_with_a", draw)
    groups, stats = seen.result
    assert stats.aborted > 0
    assert any(rollout.finished for group in groups for rollout in group.rollouts)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 5}, {"kv_cache_gib": 12 / 2**15}])
def test_responses_copy_the_end_of_their_prompt(
    pool: RankPool, model_a: str, limits: dict[str, Any]
) -> None:
    """Prompts of less than a block, of one and two tokens more than one, and of many tokens."""
    lengths = (60, 34, 2, 33, 3, 20, 32)
    prompts = [
        Prompt(id=str(i), text="abcdefg"[i] + ("abcd" * 16)[: n - 1], answer="", task="t")
        for i, n in enumerate(lengths)
    ]
    pool.run(W + "start", model_a, 1, max_prompt_tokens=64, max_response_tokens=60, **limits)
    draw = SampleRequest(prompts=prompts, num_rollouts=6, seed=5)
    alone = pool.run(S + "watched", "collect_with_a", draw)[0]
    copied = pool.run(S + "watched", "collect_with_a", draw, tails=True)[0]
    for group, other in zip(alone.result[0], copied.result[0], strict=True):
        assert group.rewards.tolist() == other.rewards.tolist()
        for one, same in zip(group.rollouts, other.rollouts, strict=True):
            assert one.token_ids == same.token_ids
            assert np.allclose(one.logprobs, same.logprobs, rtol=0, atol=2e-6)
    assert (copied.preempted > 0) == ("kv_cache_gib" in limits)
    assert copied.computed < alone.computed
    if not limits:  # one response computes its prompt, the others its last token
        own = split_evenly(copied.result[0], 2, 0)
        expected = [n - 1 for group in own for n in [1, *[len(group.prompt_ids)] * 5]]
        assert sorted(copied.hits) == sorted(expected)


def _both_ways(pool: RankPool, name: str, *args: Any, **options: Any) -> Scheduling:
    """Every step, response and prefix-cache hit is that of vLLM's own scheduling."""
    short = pool.run(S + "watched", name, *args, **options)[0]
    long = pool.run(S + "watched", name, *args, short_way=False, **options)[0]
    assert long.short == 0 < short.short
    assert short.short > 0.5 * sum(step[3] for step in short.steps)
    assert (short.steps, short.hits, short.preempted) == (long.steps, long.hits, long.preempted)
    assert _comparable(short.result) == _comparable(long.result)
    return short


def _comparable(result: Any) -> Any:
    return (repr(result[0]), result[1]) if isinstance(result, tuple) else repr(result)
