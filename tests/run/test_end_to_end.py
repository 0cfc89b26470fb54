"""The command line as a user calls it: a whole run, the same again, an interrupted one resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from passk_fast.checkpoint.store import checkpoint_name
from passk_fast.errors import ExitCode
from passk_fast.report.records import read_records, without_time

CONFIG = Path(__file__).parents[2] / "configs" / "maze_cpu.toml"
COMMAND = [sys.executable, "-m", "passk_fast"]
SMALL = """
    --prompts-per-step 4 --algorithm.num-rollouts 8 --algorithm.k 2 --warm-start.steps 80
    --warm-start.batch-size 32 --eval.num-prompts 4 --eval.num-rollouts 4 --eval.every 2
    --data.maze.train-sizes 5 --data.maze.train-per-size 24 --data.maze.test-sizes 5
    --data.maze.test-per-size 4 --rollout.max-num-seqs 32 --checkpoint.every 2
""".split()
"""So small that every step has groups with a signal: a run that trains nothing tests nothing."""


def call(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `passk-fast ...` as a user would, with one thread per rank: ranks share few cores."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train(folder: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A few small steps into `folder`."""
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    return call("train", str(CONFIG), *where, *SMALL, *arguments)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The run's records without their timings."""
    return [without_time(record) for record in read_records(folder / "metrics.jsonl")]


def test_help_and_unknown_commands() -> None:
    assert "passk-fast train CONFIG" in call("--help").stdout
    assert "--optim.lr" in call("train", "--help").stdout
    wrong = call("trian")
    assert wrong.returncode == ExitCode.BAD_CONFIG
    assert "unknown command 'trian'" in wrong.stderr


def test_dry_run_prints_the_resolved_config(tmp_path: Path) -> None:
    done = train(tmp_path / "run", tmp_path, "--dry-run", "--optim.lr", "0.125")
    assert done.returncode == 0, done.stderr
    assert "lr = 0.125" in done.stdout
    assert done.stdout.startswith((tmp_path / "run" / "resolved.toml").read_text())
    assert done.stdout.count("--- prompt 'maze-train-5-") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--optim.lrr", "1"], ExitCode.BAD_CONFIG, "Did you mean --optim.lr?"),
        (["--nproc", "3", "--parallel.tensor", "2"], ExitCode.BAD_CONFIG, "World size 3"),
        (["--data.test", "gone.jsonl"], ExitCode.BAD_DATA, "gone.jsonl"),
    ],
)
def test_errors_are_one_paragraph_with_a_code(
    tmp_path: Path, arguments: list[str], code: ExitCode, message: str
) -> None:
    done = train(tmp_path / "run", tmp_path, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(folder, cache, output) of four uninterrupted steps."""
    root = tmp_path_factory.mktemp("runs")
    done = train(root / "whole", root / "cache", "--steps", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "whole", root / "cache", done.stdout


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.megatron
def test_a_run_leaves_what_it_promises(whole: tuple[Path, Path, str]) -> None:
    folder, _, output = whole
    records = metrics(folder)
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in records if "eval" in record] == [0, 2, 4]
    for record in records[1:]:
        assert record["informative_groups"] > 0
        assert record["grad_norm"] > 0
        assert record["ppo_kl"] == 0.0
        assert record["logprob_gap_max"] <= 1e-4  # every step: every weight sync was complete
    for name in ("config.toml", "curve.png", "tensorboard", "samples", "checkpoints/LATEST"):
        assert (folder / name).exists(), name
    assert "Where to look" in output
    assert "pass@2" in output


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.megatron
def test_resumed_equals_uninterrupted_and_converts(
    whole: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, cache, _ = whole
    resumed = tmp_path / "resumed"
    for steps in ("2", "4"):
        done = train(resumed, cache, "--steps", steps)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming from step 2" in done.stdout
    # the first call evaluated at its own last step, as the whole run did at step 2
    assert metrics(resumed) == metrics(folder)

    from safetensors.torch import load_file

    for run, name in ((folder, "a"), (resumed, "b")):
        done = call("convert", str(run), str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    a = load_file(tmp_path / "a" / "model.safetensors")
    b = load_file(tmp_path / "b" / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert AutoTokenizer.from_pretrained(tmp_path / "a").eos_token == "<eos>"


@pytest.mark.slow
@pytest.mark.megatron
def test_dynamic_sampling_with_early_stop_resumes_where_it_was(
    whole: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, cache, _ = whole
    options = """
        --rollout.early-stop --rollout.verify-processes 1 --rollout.dynamic-sampling 3
        --algorithm.loss-denominator informative_tokens --data.curriculum 0.5 --nproc 2
    """.split()
    runs = [tmp_path / "whole", tmp_path / "resumed", tmp_path / "resumed"]
    for folder, steps in zip(runs, ("4", "2", "4"), strict=True):
        done = train(folder, cache, "--steps", steps, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(runs[0]) == metrics(runs[1])
    for record in metrics(runs[0])[1:]:
        assert 4 <= record["sampled_prompts"] <= 12
        assert record["informative_groups"] == 4 or record["sampled_prompts"] == 12


@pytest.mark.slow
@pytest.mark.megatron
def test_a_schedule_resumes_where_it_was(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, cache, _ = whole
    plan = "--algorithm.schedule.kind plateau --algorithm.schedule.ks 2 1".split()
    plan += "--algorithm.schedule.patience 1 --algorithm.schedule.min-delta 1.0".split()
    for folder, calls in (("whole", ("4",)), ("resumed", ("2", "4"))):
        for steps in calls:
            done = train(tmp_path / folder, cache, "--steps", steps, *plan)
            assert done.returncode == 0, done.stdout + done.stderr
    # Never better by 1: the second step without a new best ends the first phase.
    assert [r["phase"] for r in metrics(tmp_path / "whole")[1:]] == [0, 0, 1, 1]
    assert [r["k"] for r in metrics(tmp_path / "whole")[1:]] == [2, 2, 1, 1]
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.megatron
def test_evaluating_a_run(whole: tuple[Path, Path, str]) -> None:
    folder, _, _ = whole
    options = ["--samples", "maze=6", "--eval.num-prompts", "3", "--rollout.truncated", "zero"]
    done = call("eval", str(folder / "config.toml"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    newest = folder / "checkpoints" / checkpoint_name(4)
    assert f"{newest} (step 4): temperature 1, top_p 0.95" in done.stdout
    assert "the first 3 of 4 held-out prompts" in done.stdout
    assert "maze, 3 prompts x 6: pass@1 0." in done.stdout
    record = json.loads((folder / "eval.json").read_text())
    assert (record["temperature"], record["top_p"], record["truncated"]) == (1.0, 0.95, "zero")
    assert (record["checkpoint"], record["step"]) == (str(newest), 4)
    maze = record["tasks"]["maze"]
    assert sum(maze["correct_histogram"]) == 3
    assert maze["parts"]["5x5"]["pass@1"] == maze["pass@1"]
    assert {"pass@1", "pass@1_se", "pass@2", "pass@4", "pass@4_se"} <= maze.keys()
    assert maze["pass@1"] <= maze["pass@2"] <= maze["pass@4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "maze"], "--samples must be like maze=32"),
        (["--model", "nowhere"], "nowhere is neither a run folder nor a checkpoint"),
        (["--out", "no/such/folder/x.json"], "is not a folder"),
        (["--eval.top-p", "2"], "eval.top_p must be in (0, 1]"),
    ],
)
def test_what_eval_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = call("eval", str(CONFIG), "--output-dir", str(tmp_path), *arguments)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_curves(tmp_path: Path) -> None:
    done = call("curves", "passk:4", "--num-rollouts", "32", "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert "passk:4: eta is largest, 10.3622, at c = 8 of 32 (25.0%)" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.png", "a.svg"]
    wrong = call("curves", "passk:4", "--rollouts", "8")
    assert wrong.returncode == ExitCode.BAD_CONFIG
    assert "has no option '--rollouts'" in wrong.stderr


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.parametrize("decode", [True, pytest.param(False, marks=pytest.mark.sample)])
def test_bench_says_where_the_time_goes(tmp_path: Path, decode: bool) -> None:
    out = tmp_path / "bench.json"
    options = """
        --bench.steps 1 --bench.accuracy 0.5 --bench.response-mean 8 --rollout.early-stop
        --algorithm.loss-denominator informative_tokens --nproc 2 --prompts-per-step 12
    """.split()
    more = [] if decode else ["--bench.no-decode"]
    done = call("bench", str(CONFIG), "--out", str(out), *SMALL, *options, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MFU" in done.stdout
    result = json.loads(out.read_text())
    assert sum(result["breakdown_s"].values()) == pytest.approx(result["step_s"])
    assert result["config"]["decode"] == decode
    assert 0 < result["saved_by_sharing"] < 1
    assert 0 < result["mfu"] < 1


@pytest.mark.slow
@pytest.mark.megatron
def test_sampling_ahead_is_off_policy_by_one_step_and_resumes(
    whole: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, cache, _ = whole
    options = "--rollout.max-off-policy-steps 1 --loss.tis-clip 2 --device cpu".split()
    options += ["--loss.entropy-coef", "0.01"]  # every batch moves the weights
    runs = [tmp_path / "whole", tmp_path / "resumed", tmp_path / "resumed"]
    for run, steps in zip(runs, ("4", "2", "4"), strict=True):
        done = train(run, cache, "--steps", steps, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    records = metrics(runs[0])
    off_policy = [record["off_policy_steps"] for record in records[1:]]
    assert off_policy == [0, 1, 0, 1]  # checkpoints at 2 and 4
    assert records == metrics(runs[1])
    fresh = metrics(folder)
    assert records[1]["reward"] == fresh[1]["reward"]
    # Sampled before the first update: the trainer's log-probs have moved since.
    assert records[2]["logprob_gap_max"] > 1e-4 >= records[3]["logprob_gap_max"]


@pytest.mark.slow
@pytest.mark.megatron
def test_two_runs_with_one_seed_agree(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, cache, _ = whole
    again = tmp_path / "again"
    assert train(again, cache, "--steps", "4").returncode == 0
    assert metrics(again) == metrics(folder)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.megatron
def test_tensor_parallel_trainer_with_two_rollout_engines(
    whole: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, cache, _ = whole
    done = train(tmp_path / "tp2", cache, "--steps", "2", "--parallel.tensor", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    for got, want in zip(metrics(tmp_path / "tp2"), metrics(folder), strict=False):
        if got["step"] == 1:  # the same samples, from the same weights
            assert got["reward"] == want["reward"]
            assert got["response_tokens"] == want["response_tokens"]
            assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.megatron
def test_sigterm_saves_and_says_so(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, cache, _ = whole
    folder = tmp_path / "stopped"
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    child = subprocess.Popen(
        [*COMMAND, "train", str(CONFIG), *where, *SMALL, "--steps", "5000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) > 2:
            break
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == ExitCode.PREEMPTED, stderr
    assert (folder / "PREEMPTED").exists()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    latest = (folder / "checkpoints" / "LATEST").read_text().strip()
    assert latest == f"step_{steps[-1]:08d}"


@pytest.mark.slow
@pytest.mark.megatron
def test_a_killed_rank_is_a_lost_rank(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, cache, _ = whole
    folder = tmp_path / "killed"
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    child = subprocess.Popen(
        [*COMMAND, "train", str(CONFIG), *where, *SMALL, "--steps", "5000", "--max-restarts", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.2)
    for pid in _workers_of(child.pid):
        os.kill(pid, signal.SIGKILL)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == ExitCode.LOST_RANK, stderr


def _workers_of(pid: int) -> list[int]:
    """Processes two levels below: the launcher's workers."""
    import psutil

    launchers = psutil.Process(pid).children()
    return [child.pid for launcher in launchers for child in launcher.children()]
