"""Rows of warm_start.data as tokens, and a model that learned from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from passk_fast.config import ShapeConfig
from passk_fast.errors import DataError, ExitCode
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
from passk_fast.report.records import read_records
from passk_fast.run.warm_start_rows import encode_demonstrations
from passk_fast.tasks.demonstrations import Demonstration
from tests.run.test_end_to_end import call

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
)


def _tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer("abc[]:")
    tokenizer.chat_template = template
    return tokenizer


def _row(prompt: str | tuple[tuple[str, str], ...], response: str = "c") -> Demonstration:
    return Demonstration(prompt=prompt, response=response, place="rows.jsonl:7")


def test_prompts_are_texts_or_follow_the_template() -> None:
    tokenizer = _tokenizer()
    end = tokenizer.eos_token_id
    chat = (("user", "a"), ("assistant", "b"))
    rows = [_row("ab"), _row(chat), _row("a", response="c<eos>")]
    encoded = encode_demonstrations(rows, tokenizer, 100)
    assert [tokenizer.decode(prompt) for prompt, _ in encoded] == ["ab", "[a][b]:", "a"]
    assert [response[1:] for _, response in encoded] == [[end]] * 3  # once, wherever it stands


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        (_row("a" * 9), TEMPLATE, "have 11 tokens, and at most 10 fit"),
        (_row("z"), TEMPLATE, "Character 'z' at position 0"),
        (_row("a", "cz"), TEMPLATE, "Character 'z' at position 1"),
        (_row((("user", "a"),)), None, "the model has no chat template"),
        (_row((("tool", "a"),)), TEMPLATE, "the chat template refuses it: no tools"),
    ],
)
def test_rows_that_cannot_be_trained_are_named(
    row: Demonstration, template: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:7: .*{message}"):
        encode_demonstrations([_row("a"), row], _tokenizer(template), 10)


CONFIG = """
steps = 1
prompts_per_step = 4
micro_batch_tokens = 512
device = "cpu"
[rollout]
max_prompt_tokens = 16
max_response_tokens = 8
kv_cache_gib = 0.25
[algorithm]
num_rollouts = 4
k = 2
skip_zero_advantage = "off"
[warm_start]
steps = 40
batch_size = 16
lr = 5e-3
lr_warmup_steps = 2
[eval]
every = 0
num_prompts = 4
num_rollouts = 8
"""


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.megatron
def test_the_model_answers_as_the_rows_do(tmp_path: Path) -> None:
    shape = ShapeConfig(
        num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1,
        head_dim=32, max_positions=64,
    )  # fmt: skip
    tokenizer = character_tokenizer("abcd=")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    model = make_tiny_model(shape, tokenizer, 0, tmp_path / "model")
    pairs = {"a": "bb", "b": "ccc", "c": "d", "d": "abcd"}
    learned, judged = tmp_path / "learned.jsonl", tmp_path / "judged.jsonl"
    learned.write_text(
        "".join(
            json.dumps({"prompt": [{"role": "user", "content": ask}], "response": answer}) + "\n"
            for ask, answer in pairs.items()
        )
    )
    judged.write_text(
        "".join(
            json.dumps({"prompt": f"{ask}=", "answer": answer, "task": "exact"}) + "\n"
            for ask, answer in pairs.items()
        )
    )
    (tmp_path / "config.toml").write_text(CONFIG)
    arguments = [
        *("train", str(tmp_path / "config.toml"), "--output-dir", str(tmp_path / "run")),
        *("--model.path", str(model), "--warm-start.cache-dir", str(tmp_path / "cache")),
        *("--data.train", str(judged), "--data.test", str(judged)),
        *("--warm-start.data", str(learned)),
    ]
    done = call(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    before = read_records(tmp_path / "run" / "metrics.jsonl")[0]["eval"]
    assert before["pass@1"] > 0.9, before

    learned.write_text('{"prompt": "a="}\n')
    for extra in ([], ["--dry-run"]):
        done = call(*arguments, "--output-dir", str(tmp_path / "other"), *extra)
        assert done.returncode == ExitCode.BAD_DATA
        assert done.stderr == f"error: {learned}:1: field 'response' is missing.\n"
