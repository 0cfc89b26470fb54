"""Another sampler than vLLM: whatever implements `Engine` can be collected from."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import DataError
from passk_fast.model.tokenizer import character_tokenizer
from passk_fast.rollout.collect import CollectStats, collect_groups
from passk_fast.rollout.engine_protocol import Engine
from passk_fast.rollout.vllm.engine import RolloutEngine
from tests.rollout.table_engine import TableEngine

PROMPTS = [
    Prompt(id=f"p{i}", text=text, answer="a", task="test")
    for i, text in enumerate(("ab", "c", "d"))
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return character_tokenizer("abcd")


def logits(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> torch.Tensor:
    """A peaked random table without special tokens but the end."""
    size = len(tokenizer)
    table_VV = 2 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    forbidden = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    table_VV[:, forbidden] = float("-inf")
    return table_VV


def has_a(prompt: Prompt, text: str) -> float:
    return float(prompt.answer in text)


def collect(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **options: object
) -> tuple[list[RolloutGroup], CollectStats]:
    request = SampleRequest(prompts=PROMPTS, num_rollouts=16, seed=seed, **options)
    return collect_groups(engine, request, tokenizer, has_a)


def test_groups_of_a_table_have_its_log_probs(tokenizer: PreTrainedTokenizerBase) -> None:
    logits_VV = logits(tokenizer)
    groups, stats = collect(TableEngine(tokenizer, logits_VV), tokenizer)
    logprobs_VV = logits_VV.log_softmax(-1)
    for group in groups:
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
            before = torch.tensor([group.prompt_ids[-1], *rollout.token_ids[:-1]])
            expected = logprobs_VV[before, torch.tensor(rollout.token_ids)]
            assert rollout.logprobs == tuple(expected.tolist())
            assert rollout.finished == (rollout.token_ids[-1] == tokenizer.eos_token_id)
            assert reward == float("a" in rollout.text)
    assert stats.prompt_tokens == 16 * (2 + 1 + 1)


def test_responses_follow_the_table(tokenizer: PreTrainedTokenizerBase) -> None:
    """First tokens of 16 x 40 responses to "c": frequencies within four standard errors."""
    logits_VV = logits(tokenizer)
    engine = TableEngine(tokenizer, logits_VV)
    counts = np.zeros(len(tokenizer))
    for seed in range(40):
        groups, _ = collect(engine, tokenizer, seed)
        for rollout in groups[1].rollouts:
            counts[rollout.token_ids[0]] += 1
    (c,) = groups[1].prompt_ids
    chance = logits_VV[c].softmax(-1).numpy()
    error = np.sqrt(chance * (1 - chance) / counts.sum())
    assert (np.abs(counts / counts.sum() - chance) <= 4 * error).all()


def test_the_seed_alone_decides(tokenizer: PreTrainedTokenizerBase) -> None:
    narrow, wide = (TableEngine(tokenizer, logits(tokenizer), width=width) for width in (1, 50))
    groups = [collect(engine, tokenizer, seed=5)[0] for engine in (narrow, wide, wide)]
    other = collect(wide, tokenizer, seed=6)[0]
    sampled = [[group.rollouts for group in batch] for batch in (*groups, other)]
    assert sampled[0] == sampled[1] == sampled[2] != sampled[3]


def test_decided_groups_are_stopped(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = zero_advantage_rows(table("passk", 16, 12))
    engine = TableEngine(tokenizer, logits(tokenizer))
    whole, _ = collect(engine, tokenizer)
    stopped, stats = collect(engine, tokenizer, zero_advantage_rows=rows)
    assert stats.aborted > 0
    for before, after in zip(whole, stopped, strict=True):
        if not rows[int(before.rewards.sum())]:
            assert after.rollouts == before.rollouts
        missing = np.isnan(after.rewards)
        assert [not r.token_ids for r in after.rollouts] == missing.tolist()
        assert after.rewards[~missing].tolist() == before.rewards[~missing].tolist()


def test_new_weights_are_used(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = TableEngine(tokenizer, logits(tokenizer))
    first, _ = collect(engine, tokenizer)
    engine.sleep()
    engine.wake_up()
    opened = engine.open_parameters()
    opened.targets["logits"].copy_(logits(tokenizer, seed=1))
    engine.close_parameters(opened, probe=True)
    second, _ = collect(engine, tokenizer)
    fresh, _ = collect(TableEngine(tokenizer, logits(tokenizer, seed=1)), tokenizer)
    assert [g.rollouts for g in second] == [g.rollouts for g in fresh]
    assert [g.rollouts for g in second] != [g.rollouts for g in first]


def test_a_prompt_above_its_limit_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = TableEngine(tokenizer, logits(tokenizer), max_prompt_tokens=1)
    with pytest.raises(DataError, match=r"Prompt 'p0' has 2 tokens, more than .* = 1"):
        collect(engine, tokenizer)


@pytest.mark.parametrize("name", [name for name in vars(Engine) if not name.startswith("_")])
def test_vllms_engine_has_every_method_of_the_protocol(name: str) -> None:
    def arguments(cls: type) -> list[tuple[str, object, object]]:
        signature = inspect.signature(getattr(cls, name))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert arguments(RolloutEngine) == arguments(Engine)
