"""Two steps with real-valued rewards: a function of the user's own, shares of tests, maths rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from passk_fast.config import ShapeConfig
from passk_fast.errors import ExitCode
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
from passk_fast.report.records import read_records
from tests.run.test_end_to_end import call

pytestmark = [pytest.mark.slow, pytest.mark.megatron]
CONFIG = """
steps = 2
prompts_per_step = 2
micro_batch_tokens = 1024
device = "cpu"
[model]
path = "{model}"
[rollout]
max_prompt_tokens = 120
max_response_tokens = 8
kv_cache_gib = 0.25
[algorithm]
num_rollouts = 4
k = 2
[optim]
lr_warmup_steps = 0
[warm_start]
steps = 0
[data]
train = "{rows}"
test = "{rows}"
[eval]
every = 0
num_prompts = 2
num_rollouts = 4
"""
REWARDS = """
def share(prompts, responses, answers):
    assert len(responses) == 4, "those of a group come together"
    print("x" * 100_000)
    return [sum(c in "abcdefgh" for c in text) / max(1, len(text)) for text in responses]
def broken(prompt, response, answer):
    raise KeyError("no such column: gold_label")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, and a tokenizer of characters."""
    letters = "".join(map(chr, range(32, 127))) + "\n"
    shape = ShapeConfig(
        num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1,
        head_dim=32, max_positions=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model(shape, character_tokenizer(letters), 0, folder / "model")


def _train(
    folder: Path, model: Path, row: dict[str, object], *arguments: str
) -> tuple[int, str, list[dict[str, object]]]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    (folder / "config.toml").write_text(CONFIG.format(model=model, rows=rows))
    (folder / "rewards.py").write_text(REWARDS)
    run = folder / "run"
    done = call("train", str(folder / "config.toml"), "--output-dir", str(run), *arguments)
    metrics = run / "metrics.jsonl"
    records = read_records(metrics) if metrics.exists() else []
    return done.returncode, done.stdout + done.stderr, records


@pytest.mark.parametrize(
    "estimator",
    [pytest.param("passk", marks=pytest.mark.sample), "pkpo_sloo_minus_one", "tailrl"],
)
def test_a_function_with_rewards_between_0_and_1(
    model: Path, tmp_path: Path, estimator: str
) -> None:
    code, output, records = _train(
        tmp_path,
        model,
        {"prompt": "Write a letter.", "answer": "a"},
        "--data.verifier",
        f"{tmp_path}/rewards.py:share",
        "--algorithm.estimator",
        estimator,
        *(("--algorithm.k", "1") if estimator == "tailrl" else ()),
    )
    assert code == 0, output
    assert "xxx" not in output
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["verifier_failures"] == 0 for record in records[1:])
    assert any(0.0 < float(str(record["mean_reward"])) < 1.0 for record in records[1:])
    assert any(record["effective_batch"] for record in records[1:])
    assert "max@2" in output or "max@2" in json.dumps(records)


@pytest.mark.sample
def test_a_function_that_raises_ends_the_run_with_its_words(model: Path, tmp_path: Path) -> None:
    code, output, _ = _train(
        tmp_path,
        model,
        {"prompt": "Write a letter.", "answer": "a"},
        "--data.verifier",
        f"{tmp_path}/rewards.py:broken",
    )
    assert code == ExitCode.BAD_DATA, output
    assert "KeyError: 'no such column: gold_label' (rewards.py:7)" in output
    assert "rollout.max_verifier_failures" in output
    assert "warm-start" not in output


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1 + 1?", "answer": "It is\n#### 2"},
        {"problem": "1 + 1?", "solution": "It is \\boxed{2}."},
        {"problem": "1 + 1?", "answer": 2},
    ],
)
def test_maths(model: Path, tmp_path: Path, row: dict[str, object]) -> None:
    code, output, records = _train(tmp_path, model, row)
    assert code == 0, output
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["verifier_failures"] == 0 for record in records[1:])


@pytest.mark.sample
def test_code_earns_the_share_of_tests_that_pass(tmp_path: Path) -> None:
    """Any row of this model's tokens is a program; it passes the tests of the names it sets."""
    statements = [f"{name} = {value}\n" for name in "abcd" for value in range(1, 10)]
    tokenizer = character_tokenizer("#")
    tokenizer.add_tokens(statements)
    shape = ShapeConfig(
        num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1,
        head_dim=32, max_positions=256,
    )  # fmt: skip
    model = make_tiny_model(shape, tokenizer, 0, tmp_path / "model")
    row = {"prompt": "a = 1\n", "task": "code", "tests": [f"assert {name}" for name in "abcd"]}
    code, output, records = _train(tmp_path, model, row | {"answer": ""})
    assert code == 0, output
    assert all(record["verifier_failures"] == 0 for record in records[1:])
    samples = [
        json.loads(line)
        for file in sorted((tmp_path / "run" / "samples").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert any(0.0 < sample["reward"] < 1.0 for sample in samples)
    for sample in samples:
        response = sample["response"]
        broken = "<pad>" in response or "<unk>" in response
        names = set(re.findall(r"^([a-d]) = \d$", response, re.MULTILINE))
        assert sample["reward"] == (0.0 if broken else len(names) / 4), response
    assert any(record["effective_batch"] for record in records[1:])


def test_early_stop_is_refused_at_the_dry_run(model: Path, tmp_path: Path) -> None:
    code, output, _ = _train(
        tmp_path,
        model,
        {"prompt": "Write a letter.", "answer": "a"},
        "--data.verifier",
        f"{tmp_path}/rewards.py:share",
        "--rollout.early-stop",
        "--algorithm.loss-denominator",
        "sequences",
        "--dry-run",
    )
    assert code == ExitCode.BAD_CONFIG
    assert "rollout.early_stop with the task" in output
