"""A run of a random Gemma-2 model: what is trained is what vLLM samples from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from passk_fast.model.tokenizer import character_tokenizer
from passk_fast.report.records import read_records
from tests.run.test_end_to_end import call
from tests.run.test_rewards_end_to_end import CONFIG, REWARDS

pytestmark = [pytest.mark.slow, pytest.mark.megatron]
PROMPT = "Write a letter, and then another one, until there are eight letters or so."
"""Longer than the window."""


def make_gemma2(folder: Path) -> Path:
    """Two layers, one with a window; caps that bend what the model gives; random norms."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=256,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            sliding_window=16,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run_trains_what_vllm_samples(tmp_path: Path) -> None:
    model, rows = make_gemma2(tmp_path / "model"), tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": PROMPT, "answer": "a"})
    rows.write_text(f"{row}\n" * 4)
    (tmp_path / "config.toml").write_text(CONFIG.format(model=model, rows=rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    run = tmp_path / "run"
    done = call(
        *("train", str(tmp_path / "config.toml"), "--output-dir", str(run), "--steps", "3"),
        *("--data.verifier", f"{tmp_path}/rewards.py:share", "--optim.lr", "1e-2"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_records(run / "metrics.jsonl")[1:]
    assert [record["step"] for record in records] == [1, 2, 3]
    # Each step samples from the weights of the last one: also through the output layer's packed
    # copy of the embedding.
    assert all(0.0 < float(record["logprob_gap_max"]) <= 1e-4 for record in records)
    assert all(float(record["grad_norm"]) > 0.0 for record in records)
    assert torch.isfinite(torch.tensor([float(record["loss"]) for record in records])).all()
