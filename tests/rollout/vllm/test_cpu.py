"""What replaces vLLM's own parts on CPU gives what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.data.types import Prompt, SampleRequest
from passk_fast.rollout.collect import split_evenly
from passk_fast.rollout.vllm.cpu.sampler import NORM_PROVIDER, SeededSampler
from tests.ranks import RankPool
from tests.rollout.vllm.scheduling import Scheduling

W, S = "tests.rollout.vllm.workers:", "tests.rollout.vllm.scheduling:"
PROMPTS = [[3, 5, 7], [4], [9, 9, 9, 9, 3], [12, 11, 10, 9, 8, 7], [6, 6]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_draw_depends_on_the_seed_and_its_number_alone() -> None:
    alone = SeededSampler()
    g = generator(7)
    expected = [int(alone.seeds({0: g}, 1)[0]) for _ in range(6)]
    assert len(set(expected)) == 6
    # The same request among others that come, move to other rows, and go; once it is away itself.
    sampler, mine, others = SeededSampler(), generator(7), [generator(s) for s in range(3)]
    seen = [int(sampler.seeds({0: mine}, 1)[0])]
    seen.append(int(sampler.seeds({0: others[0], 1: mine}, 2)[1]))
    sampler.seeds({0: others[0], 1: others[1]}, 2)
    seen.append(int(sampler.seeds({2: mine, 0: others[1]}, 4)[2]))
    seen += [int(sampler.seeds({1: mine, 2: others[2]}, 3)[1]) for _ in range(3)]
    assert seen == expected


def test_requests_of_the_next_batch_start_anew() -> None:
    sampler, g = SeededSampler(), generator(7)
    first = [int(sampler.seeds({0: g}, 1)[0]) for _ in range(3)]
    sampler.forget()
    again = generator(7)
    assert [int(sampler.seeds({0: again}, 1)[0]) for _ in range(3)] == first


def test_seeds_are_spread_evenly_and_rows_without_generator_are_random() -> None:
    sampler = SeededSampler()
    rows = {i: generator(i) for i in range(0, 2000, 2)}
    taken = np.stack([sampler.seeds(rows, 2000).numpy() for _ in range(10)])
    own = taken[:, ::2] / 2**31
    assert ((own >= 0) & (own < 1)).all()
    assert len(np.unique(own)) > 9990
    # The mean of 10,000 uniform numbers has a standard error of 0.0029.
    assert abs(own.mean() - 0.5) < 0.015
    assert np.abs(np.corrcoef(own)[~np.eye(10, dtype=bool)]).max() < 0.15
    assert len(np.unique(taken[:, 1::2])) > 9990


def test_two_requests_of_one_seed_are_refused() -> None:
    with pytest.raises(AssertionError, match="one seed"):
        SeededSampler().seeds({0: generator(1), 1: generator(1)}, 2)


@pytest.mark.slow
@pytest.mark.sample
def test_the_fast_path_and_preemption_change_no_response(pool: RankPool, model_a: str) -> None:
    """Responses cross several blocks; a cache of a few blocks makes vLLM begin some anew."""
    options = {"num_rollouts": 8, "seed": 3}
    limits = {"max_response_tokens": 80}
    pool.run(W + "start", model_a, 1, **limits)
    fast = _both_ways(pool, "sample", PROMPTS, **options)
    assert max(len(r.token_ids) for group in fast.result for r in group) > 64
    # 2 layers, keys and values, 2 heads of 32 float32: 32 KiB a block of 32 tokens.
    pool.run(W + "start", model_a, 1, kv_cache_gib=12 / 2**15, **limits)
    crowded = _both_ways(pool, "sample", PROMPTS, **options)
    assert fast.preempted == 0 < crowded.preempted
    for group, other in zip(fast.result, crowded.result, strict=True):
        assert [r.token_ids for r in group] == [r.token_ids for r in other]


@pytest.mark.slow
@pytest.mark.sample
def test_the_fast_path_where_requests_wait_and_are_aborted(pool: RankPool, model_a: str) -> None:
    prompts = [Prompt(id=str(i), text="abcd"[: 1 + i % 4], answer="", task="t") for i in range(12)]
    pool.run(W + "start", model_a, 1, max_num_seqs=7, max_response_tokens=48)
    zero_rows = zero_advantage_rows(table("passk", 8, 6))
    request = SampleRequest(prompts=prompts, num_rollouts=8, seed=2, zero_advantage_rows=zero_rows)
    seen = _both_ways(pool, "collect_with_a", request)
    groups, stats = seen.result
    assert stats.aborted > 0
    assert any(rollout.finished for group in groups for rollout in group.rollouts)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 5}, {"kv_cache_gib": 12 / 2**15}])
def test_responses_copy_the_partially_filled_block_of_their_prompt(
    pool: RankPool, model_a: str, limits: dict[str, Any]
) -> None:
    """Prompts of less than a block, of one and two tokens more than one, and of many tokens."""
    lengths = (60, 34, 2, 33, 3, 20, 32)
    prompts = [
        Prompt(id=str(i), text="abcdefg"[i] + ("abcd" * 16)[: n - 1], answer="", task="t")
        for i, n in enumerate(lengths)
    ]
    pool.run(W + "start", model_a, 1, max_prompt_tokens=64, max_response_tokens=60, **limits)
    request = SampleRequest(prompts=prompts, num_rollouts=6, seed=5)
    alone = pool.run(S + "watched", "collect_with_a", request)[0]
    copied = pool.run(S + "watched", "collect_with_a", request, share=True)[0]
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


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("fast_path", [True, False])
def test_responses_are_valid_with_and_without_the_fast_path(
    pool: RankPool, model_a: str, fast_path: bool
) -> None:
    """Log-probs are those of transformers; the same seed repeats its responses."""
    pool.run(W + "start", model_a, 1, cpu_fast_path=fast_path, max_prompt_tokens=48)
    request = SampleRequest(prompts=_prompts(), num_rollouts=4, seed=7)
    (groups, stats), _ = pool.run(W + "collect_with_a", request)
    (again, _), _ = pool.run(W + "collect_with_a", request)
    assert [group.rollouts for group in again] == [group.rollouts for group in groups]
    assert stats.cached_tokens > 0
    model = AutoModelForCausalLM.from_pretrained(model_a, dtype=torch.float32)
    for group in groups:
        assert len({rollout.token_ids for rollout in group.rollouts}) == 4
        for rollout in group.rollouts:
            expected = _reference_logprobs(model, group.prompt_ids, rollout.token_ids)
            assert np.allclose(rollout.logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.sample
def test_greedy_responses_are_the_same_with_and_without_the_fast_path(
    pool: RankPool, model_a: str
) -> None:
    found = []
    for fast_path in (True, False):
        pool.run(W + "start", model_a, 1, cpu_fast_path=fast_path)
        found.append(pool.run(W + "sample", PROMPTS, num_rollouts=1, seed=0, temperature=0.0)[0])
    for (one,), (other,) in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert np.allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_without_the_fast_path_vllms_own_parts_are_used(pool: RankPool, model_a: str) -> None:
    for fast_path in (True, False):
        pool.run(W + "start", model_a, 1, cpu_fast_path=fast_path)
        for names in pool.run(W + "parts"):
            assert (names["scheduler"] == "PartialBlockSharingScheduler") == fast_path
            assert (names["sampler"] == "use_seeded_sampler.<locals>.forward") == fast_path
            assert (NORM_PROVIDER in names["norms"]) == fast_path


def _prompts() -> list[Prompt]:
    """Some of whose blocks of 32 tokens the prefix cache can share."""
    texts = ["abcdefgh" * 5, "ab", "hgfe", "abcdefgh" * 4 + "a"]
    return [Prompt(id=str(i), text=text, answer="", task="t") for i, text in enumerate(texts)]


def _reference_logprobs(
    model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]
) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(response)[:, None]
    logprobs: list[float] = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
    return logprobs


def _both_ways(pool: RankPool, name: str, *args: Any, **options: Any) -> Scheduling:
    """Every step, response and prefix-cache hit is that of vLLM's own scheduling."""
    fast = pool.run(S + "watched", name, *args, **options)[0]
    own = pool.run(S + "watched", name, *args, fast_path=False, **options)[0]
    assert own.fast == 0 < fast.fast
    assert fast.fast > 0.5 * fast.computed
    assert fast.steps == own.steps
    assert _comparable(fast.result) == _comparable(own.result)
    return fast


def _comparable(result: Any) -> Any:
    return (repr(result[0]), result[1]) if isinstance(result, tuple) else repr(result)
