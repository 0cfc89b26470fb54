"""The vLLM engine: log-probs, seeds, new weights, meshes, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from passk_fast.config import ShapeConfig
from passk_fast.data.types import Rollout
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
from passk_fast.rollout.engine_protocol import check_prompt
from passk_fast.rollout.response_text import unused_text
from tests.ranks import RankPool
from tests.rollout.conftest import ALPHABET

pytestmark = pytest.mark.slow

W = "tests.rollout.vllm.workers:"
PROMPTS = [[3, 5, 7], [4], [9, 9, 9, 9, 3], [12, 11, 10, 9, 8, 7], [6, 6]]
EOS = 1
UNUSED = (13, 14, 15)


def tokens(groups: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[r.token_ids for r in group] for group in groups]


def reference_logprobs(folder: str, prompt: list[int], rollout: Rollout, temperature: float):
    """Log-probs of a response under transformers' own forward pass, float32 [tokens]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *rollout.token_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(rollout.token_ids)[:, None]
    return (logits / temperature).log_softmax(-1).gather(1, chosen)[:, 0]


@pytest.mark.sample
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampling_distribution(
    pool: RankPool, model_a: str, temperature: float
) -> None:
    pool.run(W + "start", model_a, 1)
    options = {"num_rollouts": 3, "seed": 5, "temperature": temperature}
    groups = pool.run(W + "sample", PROMPTS, **options)[0]
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            expected = reference_logprobs(model_a, prompt, rollout, temperature)
            torch.testing.assert_close(
                torch.tensor(rollout.logprobs), expected, atol=1e-4, rtol=0.0
            )


def test_rollouts_depend_on_seed_and_key_not_on_order_or_split(
    pool: RankPool, model_a: str
) -> None:
    pool.run(W + "start", model_a, 1)
    forward = pool.run(W + "sample", PROMPTS, num_rollouts=4, seed=3)
    assert forward[0] == forward[1]
    order = [3, 1, 4]
    some = pool.run(
        W + "sample", [PROMPTS[i] for i in order], num_rollouts=4, seed=3, prompt_keys=order
    )[0]
    assert tokens(some) == tokens([forward[0][i] for i in order])
    other = pool.run(W + "sample", PROMPTS, num_rollouts=4, seed=4)[0]
    assert tokens(other) != tokens(forward[0])
    for group in forward[0]:
        assert len({r.token_ids for r in group}) == 4


def test_a_response_ends_with_the_end_token_or_at_the_limit(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1)
    options = {"max_tokens": 8, "temperature": 2.0}
    groups = pool.run(W + "sample", PROMPTS, num_rollouts=16, seed=0, **options)[0]
    rollouts = [rollout for group in groups for rollout in group]
    assert {r.finished for r in rollouts} == {True, False}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids) <= 8
        assert (rollout.token_ids[-1] == EOS) == rollout.finished
        assert EOS not in rollout.token_ids[:-1]
        assert rollout.finished or len(rollout.token_ids) == 8
        assert "<eos>" not in rollout.text


@pytest.mark.sample
def test_what_is_judged_is_every_token_but_the_end(pool: RankPool, model_a: str) -> None:
    """The vocabulary of 13 tokens is padded to 16, so a random model samples unused ids too."""
    names = ["<pad>", "<eos>", "<unk>", *sorted(ALPHABET), *map(unused_text, UNUSED)]
    pool.run(W + "start", model_a, 1)
    options = {"max_tokens": 8, "temperature": 2.0}
    groups = pool.run(W + "sample", PROMPTS, num_rollouts=32, seed=0, **options)[0]
    rollouts = [rollout for group in groups for rollout in group]
    assert {i for r in rollouts for i in r.token_ids} >= {0, EOS, 2, *UNUSED}
    for rollout in rollouts:
        judged = rollout.token_ids[:-1] if rollout.finished else rollout.token_ids
        assert rollout.text == "".join(names[i] for i in judged)


def test_sleep_on_cpu_does_nothing(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1)
    before = pool.run(W + "sample", PROMPTS, num_rollouts=2, seed=0)
    pool.run(W + "sleep_and_wake")
    assert pool.run(W + "sample", PROMPTS, num_rollouts=2, seed=0) == before


def test_nothing_in_gives_nothing_out(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1)
    assert pool.run(W + "sample", [], num_rollouts=2, seed=0) == [[], []]


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(("first", "second"), [("model_a", "model_b"), ("tied_a", "tied_b")])
def test_loaded_weights_equal_a_fresh_engine(
    pool: RankPool, request: pytest.FixtureRequest, first: str, second: str, tensor: int
) -> None:
    options = {"num_rollouts": 4, "seed": 0}
    of_first, of_second = request.getfixturevalue(first), request.getfixturevalue(second)
    pool.run(W + "start", of_first, tensor)
    before = pool.run(W + "sample", PROMPTS, **options)[0]
    pool.run(W + "load", of_second)
    reloaded = pool.run(W + "sample", PROMPTS, **options)[0]
    pool.run(W + "load", of_first)
    assert tokens(pool.run(W + "sample", PROMPTS, **options)[0]) == tokens(before)
    pool.run(W + "start", of_second, tensor)
    fresh = pool.run(W + "sample", PROMPTS, **options)[0]
    assert tokens(reloaded) == tokens(fresh) != tokens(before)
    for new, old in zip(reloaded, fresh, strict=True):
        for one, other in zip(new, old, strict=True):
            expected = torch.tensor(other.logprobs)
            torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-6, rtol=0.0)


def test_tensor_parallel_engine_gives_the_same_tokens(pool: RankPool, model_a: str) -> None:
    greedy = {"num_rollouts": 2, "seed": 0, "temperature": 0.0}
    seeded = {"num_rollouts": 4, "seed": 8}
    pool.run(W + "start", model_a, 2)
    two = [pool.run(W + "sample", PROMPTS, **options) for options in (greedy, seeded)]
    pool.run(W + "start", model_a, 1)
    one = [pool.run(W + "sample", PROMPTS, **options)[0] for options in (greedy, seeded)]
    for split, whole in zip(two, one, strict=True):
        assert split[0] == split[1]
        assert tokens(split[0]) == tokens(whole)


def test_engine_names_what_is_wrong(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1)
    text = pool.run(W + "sample_error", [[3], [4] * 17], num_rollouts=1, seed=0)[0]
    assert text.startswith("DataError: Prompt number 1 has 17 tokens")
    assert "rollout.max_prompt_tokens = 16" in text
    text = pool.run(W + "start_error", model_a, 1, max_response_tokens=900, kv_cache_gib=1e-5)[0]
    assert text.startswith("ConfigError: vLLM could not start with rollout.kv_cache_gib = 1e-05")
    text = pool.run(W + "start_error", model_a, 1, max_response_tokens=5000)[0]
    assert text.startswith("ConfigError: rollout.max_prompt_tokens + rollout.max_response_tokens")
    text = pool.run(W + "start_error", model_a, 3)[0]
    assert text == "ConfigError: 2 rollout ranks are not divisible by rollout.tensor = 3."
    pool.run(W + "start", model_a, 2)
    assert len(pool.run(W + "sample", PROMPTS, num_rollouts=1, seed=0)[0]) == len(PROMPTS)


def test_two_blocks_of_two_ranks(model_a: str) -> None:
    with RankPool(4) as four:
        four.run(W + "start", model_a, 2)
        halves = [PROMPTS[:2], PROMPTS[2:]]
        whole = four.run(W + "sample", PROMPTS, num_rollouts=2, seed=0)
        assert whole[0] == whole[1] == whole[2] == whole[3]
        part = four.run(W + "sample", halves[1], num_rollouts=2, seed=0, prompt_keys=[2, 3, 4])
        assert tokens(part[3]) == tokens(whole[0][2:])


def test_two_runs_share_one_machine(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 2)
    with RankPool(2) as beside:
        beside.run(W + "start", model_a, 2)
        options = {"num_rollouts": 2, "seed": 1}
        expected = pool.run(W + "sample", PROMPTS, **options)
        assert beside.run(W + "sample", PROMPTS, **options) == expected


def test_an_unsupported_head_dim_is_named(pool: RankPool, tmp_path: Path) -> None:
    shape = ShapeConfig(num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=2, head_dim=16)
    folder = make_tiny_model(shape, character_tokenizer("ab"), 0, tmp_path)
    text = pool.run(W + "start_error", str(folder), 1)[0]
    assert "has head_dim 16; vLLM on CPU takes one of 32, 64" in text


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(Exception, match="Prompt 'p' has no tokens"):
        check_prompt(0, "'p'", 10)
