"""Collecting groups: splits, verifying, messages between ranks, and the same list everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.data.types import Prompt, Rollout, SampleRequest
from passk_fast.errors import DataError
from passk_fast.model.tokenizer import character_tokenizer
from passk_fast.rollout.collect import collect_groups, split_evenly
from passk_fast.rollout.groups import GroupTracker
from tests.ranks import RankPool

W = "tests.rollout.vllm.workers:"
TEXTS = ["abc", "b", "hgfe", "a\nb", "  c"]
PROMPTS = [
    Prompt(id=f"p{i}", text=text, answer=str(i), task="test") for i, text in enumerate(TEXTS)
]


class ScriptedEngine:
    """One engine of one rank: response n to a prompt of L tokens is L, n."""

    data_rank, data_size, tensor_rank, tensor_size = 0, 1, 0, 1
    max_prompt_tokens = 4

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        tracker: GroupTracker,
        *,
        seed: int,
        prompt_keys: Sequence[int],
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> None:
        queue = [(p, n) for n in range(tracker.num_rollouts) for p in range(len(prompts))]
        while queue:
            p, n = queue.pop(0)
            rollout = Rollout(
                token_ids=(len(prompts[p]), n), logprobs=(-0.5, -1.0), text=f"{n}", finished=True
            )
            actions = tracker.step([((p, n), rollout)])
            queue = [key for key in queue if key not in actions.abort] + actions.add


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return character_tokenizer("abcdefgh\n ")


def test_groups_hold_prompts_rollouts_and_rewards(tokenizer: PreTrainedTokenizerBase) -> None:
    def verify(prompt: Prompt, text: str) -> float:
        return float(prompt.answer == text)

    groups, stats = collect_groups(
        ScriptedEngine(), SampleRequest(prompts=PROMPTS, num_rollouts=3, seed=0), tokenizer, verify
    )
    assert [group.prompt.id for group in groups] == ["p0", "p1", "p2", "p3", "p4"]
    assert tokenizer.decode(list(groups[2].prompt_ids)) == "hgfe"
    assert groups[2].rollouts[1].token_ids == (4, 1)
    assert groups[2].rewards.dtype == np.float64
    assert np.stack([group.rewards for group in groups]).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert stats.verifier_failures == 0
    assert stats.failure_kinds == {}


def test_a_verifier_that_fails_counts_as_wrong(tokenizer: PreTrainedTokenizerBase) -> None:
    answers = {"0": 1.5, "1": math.nan, "2": 0.25}

    def verify(prompt: Prompt, text: str) -> float:
        return answers[text]

    groups, stats = collect_groups(
        ScriptedEngine(),
        SampleRequest(prompts=PROMPTS[:2], num_rollouts=4, seed=0),
        tokenizer,
        verify,
    )
    # Responses 0, 1 and 3 fail; the first to fail is sampled anew, as response 4, and fails again.
    assert groups[0].rewards.tolist() == [0.0, 0.0, 0.25, 0.0]
    assert stats.verifier_failures == 8
    gave = "prompt 'p0': ValueError: the verifier gave 1.5, not a reward in [0, 1]"
    assert stats.failure_kinds["ValueError"] == gave
    assert stats.failure_kinds.keys() == {"ValueError", "KeyError"}, "the new one's text is '4'"


def test_a_response_whose_verifier_fails_is_sampled_again_once(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    def verify(prompt: Prompt, text: str) -> float:
        if text == "1":
            raise RuntimeError("no verdict")
        return 1.0

    groups, stats = collect_groups(
        ScriptedEngine(),
        SampleRequest(prompts=PROMPTS[:1], num_rollouts=3, seed=0),
        tokenizer,
        verify,
    )
    assert groups[0].rewards.tolist() == [1.0, 1.0, 1.0]
    assert [r.text for r in groups[0].rollouts] == ["0", "3", "2"]
    assert stats.verifier_failures == 1
    (words,) = stats.failure_kinds.values()
    assert re.fullmatch(r"prompt 'p0': RuntimeError: no verdict \(test_collect\.py:\d+\)", words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abcde", r"Prompt 'x' has 5 tokens, more than rollout.max_prompt_tokens = 4"),
        ("", r"Prompt 'x' has no tokens"),
        ("aZ", r"Prompt 'x': Character 'Z' at position 1"),
    ],
)
def test_bad_prompts_are_named(tokenizer: PreTrainedTokenizerBase, text: str, message: str) -> None:
    prompts = [*PROMPTS, Prompt(id="x", text=text, answer="", task="test")]
    request = SampleRequest(prompts=prompts, num_rollouts=1, seed=0)
    with pytest.raises(DataError, match=message):
        collect_groups(ScriptedEngine(), request, tokenizer, lambda *_: 1.0)


def test_parts_are_consecutive_and_balanced() -> None:
    for count in range(12):
        for parts in range(1, 6):
            split = [split_evenly(range(count), parts, part) for part in range(parts)]
            assert [i for part in split for i in part] == list(range(count))
            assert max(map(len, split)) - min(map(len, split)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("count", [1, 5])
def test_every_rank_has_what_one_rank_would_have(
    pool: RankPool, model_a: str, tensor: int, count: int
) -> None:
    prompts = PROMPTS[:count]
    pool.run(W + "start", model_a, tensor)
    (groups, stats), (others, other_stats) = pool.run(
        W + "collect", SampleRequest(prompts=prompts, num_rollouts=6, seed=7)
    )
    ids = [list(group.prompt_ids) for group in groups]
    pool.run(W + "start", model_a, 1)
    alone = pool.run(W + "sample", ids, num_rollouts=6, seed=7)[0]
    assert stats == other_stats
    empty = 0
    for group, other, rollouts in zip(groups, others, alone, strict=True):
        assert group.rollouts == other.rollouts
        assert group.rewards.tolist() == other.rewards.tolist()
        failed = [n for n, rollout in enumerate(rollouts) if not rollout.text]
        empty += len(failed)
        for n, (got, want) in enumerate(zip(group.rollouts, rollouts, strict=True)):
            if n in failed[:1]:  # its verifier raises, so another was sampled in its place
                continue
            assert (got.token_ids, got.text) == (want.token_ids, want.text)
            share = want.text.count("a") / len(want.text) if want.text else 0.0
            assert group.rewards[n] == share
    # a sample in place of an empty response may be empty again
    assert empty <= stats.verifier_failures <= 2 * empty


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("tensor", [1, 2])
def test_early_stop_leaves_informative_groups_as_they_are(
    pool: RankPool, model_a: str, tensor: int
) -> None:
    zero_rows = zero_advantage_rows(table("passk", 8, 6))  # informative: 3 or more wrong
    prompts = [Prompt(id=str(i), text="abcd"[: 1 + i % 4], answer="", task="t") for i in range(12)]
    pool.run(W + "start", model_a, tensor)
    request = SampleRequest(prompts=prompts, num_rollouts=8, seed=2)
    (whole, nothing), _ = pool.run(W + "collect_with_a", request)
    (stopped, stats), other = pool.run(
        W + "collect_with_a", replace(request, zero_advantage_rows=zero_rows)
    )
    assert nothing.aborted == 0 < stats.aborted
    assert other[1] == stats
    for before, after, on_other_rank in zip(whole, stopped, other[0], strict=True):
        assert after.rollouts == on_other_rank.rollouts
        if not zero_rows[int(before.rewards.sum())]:
            assert [r.token_ids for r in after.rollouts] == [r.token_ids for r in before.rollouts]
            assert after.rewards.tolist() == before.rewards.tolist()
        known = ~np.isnan(after.rewards)
        assert after.rewards[known].tolist() == before.rewards[known].tolist()
    informative = [not zero_rows[int(group.rewards.sum())] for group in whole]
    assert 0 < sum(informative) < len(informative)


@pytest.mark.slow
def test_a_bad_prompt_stops_every_rank(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1)
    prompts = [*PROMPTS, Prompt(id="long", text="a" * 17, answer="", task="test")]
    request = SampleRequest(prompts=prompts, num_rollouts=1, seed=0)
    for text in pool.run(W + "collect_error", request, timeout_s=60):
        assert text.startswith("DataError: Prompt 'long' has 17 tokens")
