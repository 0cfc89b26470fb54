"""Synthetic prompts, lengths and responses: deterministic, of the distribution asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.commands.synthetic import (
    Lengths,
    NumberTokenizer,
    RandomVerifier,
    SyntheticEngine,
    prompts,
)
from passk_fast.config import BenchConfig
from passk_fast.errors import ConfigError, DataError
from passk_fast.rollout.groups import GroupTracker


def test_lengths_have_the_mean_and_spread_asked_for() -> None:
    lengths = Lengths.of(BenchConfig(response_mean=200.0, response_sigma=0.5), longest=10_000)
    sampled = np.array([lengths.of_response(0, p, n) for p in range(200) for n in range(20)])
    assert sampled.mean() == pytest.approx(200, rel=0.03)
    assert np.log(sampled).std() == pytest.approx(0.5, rel=0.05)
    assert sampled[0] == lengths.of_response(0, 0, 0)


def test_lengths_of_a_file_are_sampled_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    file.write_text("".join(json.dumps({"tokens": n}) + "\n" for n in (3, 50, 900)))
    lengths = Lengths.of(BenchConfig(lengths_file=str(file)), longest=100)
    assert {lengths.of_response(1, 0, n) for n in range(50)} == {3, 50, 100}
    file.write_text('{"tokens": 3}\n{"tokens": 0}\n')
    with pytest.raises(DataError, match=r"lengths.jsonl:2: want an object"):
        Lengths.of(BenchConfig(lengths_file=str(file)), longest=100)
    with pytest.raises(DataError, match="cannot be read"):
        Lengths.of(BenchConfig(lengths_file=str(tmp_path / "gone")), longest=100)


def test_prompts_survive_their_tokenizer() -> None:
    (prompt,) = prompts(1, 12, 50, seed=3)
    ids = NumberTokenizer().encode(prompt.text)
    assert len(ids) == 12
    assert max(ids) < 50
    assert NumberTokenizer().decode(ids) == prompt.text


def test_random_responses_stop_as_sampled_ones_would() -> None:
    n, k = 16, 8
    lengths = Lengths.of(BenchConfig(response_mean=20.0), longest=64)
    engine = SyntheticEngine(lengths, 99, 8, 0, 1)
    cast, texts = prompts(40, 4, 99, 0), [[1, 2, 3, 4]] * 40
    trackers = []
    for rows in (None, zero_advantage_rows(table("passk", n, k))):
        tracker = GroupTracker(cast, n, RandomVerifier(0.7), zero_advantage_rows=rows)
        engine.stream(texts, tracker, seed=1, prompt_keys=range(40))
        trackers.append(tracker)
    whole, stopped = trackers
    assert whole.rewards.mean() == pytest.approx(0.7, abs=0.06)
    assert whole.aborted == 0 < stopped.aborted
    for rewards, row in zip(whole.rewards, stopped.rewards, strict=True):
        if not np.isnan(row).any():
            assert row.tolist() == rewards.tolist()
        else:
            assert zero_advantage_rows(table("passk", n, k))[int(rewards.sum())]


def test_random_weights_need_no_engine() -> None:
    with pytest.raises(ConfigError, match=r"needs bench.decode = false"):
        BenchConfig(random_weights=True)
