"""What ends a response: end tokens of the model folder, stop tokens, stop strings; both samplers.

The model's tokens are single characters: `<eos>` 1, and from 3 on a newline, a blank and a to h.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from passk_fast.data.types import Rollout
from passk_fast.model.tokenizer import character_tokenizer
from passk_fast.rollout.response_text import unused_text
from tests.ranks import RankPool
from tests.rollout.conftest import ALPHABET

pytestmark = pytest.mark.slow

W = "tests.rollout.vllm.workers:"
PROMPTS = [[3, 5, 7], [4], [9, 9, 9, 9, 3], [6, 6]]
UNUSED = (13, 14, 15)
IDS = character_tokenizer(ALPHABET).get_vocab()
NAMES = {index: name for name, index in IDS.items()} | {i: unused_text(i) for i in UNUSED}
EOS, A, B = IDS["<eos>"], IDS["a"], IDS["b"]

samplers = pytest.mark.parametrize("fast_path", [True, False], ids=["cpu", "vllm"])


def sample(pool: RankPool, model: str, **rollout: object) -> list[Rollout]:
    """Responses to all prompts; also of the way that training samples."""
    pool.run(W + "start", model, 1, **rollout)
    groups = pool.run(W + "sample", PROMPTS, num_rollouts=24, seed=0, temperature=1.5)[0]
    return [rollout for group in groups for rollout in group]


def searched(rollout: Rollout) -> str:
    """Where stop strings are looked for: all its tokens, but not ids that no token has."""
    return "".join(NAMES[i] for i in rollout.token_ids if i not in UNUSED)


@pytest.mark.sample
@samplers
def test_a_stop_string_is_the_end_of_what_is_judged_and_trained(
    pool: RankPool, model_a: str, fast_path: bool
) -> None:
    strings = ("ab", "<unk>c", "h")
    rollouts = sample(pool, model_a, stop=strings, cpu_fast_path=fast_path)
    ended = {}
    for rollout in rollouts:
        text = searched(rollout)
        by_string = next((s for s in strings if text.endswith(s)), None)
        by_token = rollout.token_ids[-1] == EOS
        assert rollout.finished == (by_token or by_string is not None)
        assert rollout.finished or len(rollout.token_ids) == 24
        assert not any(s in text[:-1] for s in strings)
        judged = rollout.token_ids[:-1] if by_token else rollout.token_ids
        assert rollout.text == "".join(NAMES[i] for i in judged)
        assert len(rollout.logprobs) == len(rollout.token_ids)
        ended.setdefault(by_string or by_token, rollout)
    assert {"ab", "h", True} <= set(ended)
    model = AutoModelForCausalLM.from_pretrained(model_a, dtype=torch.float32)
    one = next(r for r in rollouts[:24] if r.text.endswith("h"))
    ids = torch.tensor([[*PROMPTS[0], *one.token_ids]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0, len(PROMPTS[0]) - 1 : -1] / 1.5).log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-4, rtol=0.0)


@pytest.mark.sample
@samplers
def test_stop_tokens_and_all_end_tokens_of_the_model_folder_end_responses(
    pool: RankPool, model_a: str, tmp_path: Path, fast_path: bool
) -> None:
    """generation_config.json names <eos> and "a"; rollout.stop_token_ids "b" and an unused id."""
    folder = tmp_path / "model"
    shutil.copytree(model_a, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [EOS, A]}))
    ends = {EOS, A, B, 14}
    rollouts = sample(pool, str(folder), stop_token_ids=(B, 14), cpu_fast_path=fast_path)
    for rollout in rollouts:
        assert rollout.finished == (rollout.token_ids[-1] in ends)
        assert not ends & set(rollout.token_ids[:-1])
        assert len(rollout.logprobs) == len(rollout.token_ids)
        judged = rollout.token_ids[:-1] if rollout.finished else rollout.token_ids
        assert rollout.text == "".join(NAMES[i] for i in judged)
    assert {r.token_ids[-1] for r in rollouts} >= ends


@samplers
def test_training_samples_with_stops_what_evaluation_does(
    pool: RankPool, model_a: str, fast_path: bool
) -> None:
    """`stream` and `sample` give the same responses, also where stop strings leave the fast path;
    until its end, a response is the one that is sampled without them."""
    options = {"stop": ("ab", "h"), "stop_token_ids": (B,), "cpu_fast_path": fast_path}
    ended = sample(pool, model_a, **options)
    assert pool.run(W + "streamed", PROMPTS, 24, 0, 1.5)[0] == ended
    for rollout, whole in zip(ended, sample(pool, model_a, cpu_fast_path=fast_path), strict=True):
        assert whole.token_ids[: len(rollout.token_ids)] == rollout.token_ids


def test_forced_lengths_of_a_benchmark_are_not_cut_by_stops(pool: RankPool, model_a: str) -> None:
    pool.run(W + "start", model_a, 1, stop=("a", "b"), stop_token_ids=(A, B, EOS))
    forced = pool.run(W + "streamed", PROMPTS, 4, 0, 1.5, length=9)[0]
    assert {len(r.token_ids) for r in forced} == {9}
