"""The study's runner: reset runs equal fresh ones, resuming, the toy's exactness."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments import report, toy
from benchmarks.experiments.arms import SEEDS, arms, base_config
from benchmarks.experiments.store import Store, jobs
from passk_fast.advantage import table
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig

ROOT = Path(__file__).parents[2]


def small(folder: str) -> RunConfig:
    """A base that takes seconds."""
    base = base_config()
    maze = replace(base.data.maze, train_per_size=64, test_per_size=8)
    return replace(
        base,
        output_dir=folder,
        steps=2,
        prompts_per_step=4,
        warm_start=replace(base.warm_start, steps=6, batch_size=16, cache_dir=f"{folder}/cache"),
        algorithm=replace(base.algorithm, num_rollouts=8),
        data=replace(base.data, maze=maze),
        eval=replace(base.eval, num_prompts=4, num_rollouts=8),
    )


def runs(folder: str) -> None:
    """Called in a process of its own: arm A, arm B, arm A again; prints the results."""
    from benchmarks.experiments.worker import Laboratory

    base = small(folder)
    by_name = {arm.name: arm for arm in arms(base_config())}
    laboratory = Laboratory(base)
    # Six warm-up steps solve no maze: any verifier that says both yes and no will do.
    laboratory.verify = lambda prompt, text: float(len(text) % 2)
    results = []
    for name in ("passk", "then", "passk"):
        arm = by_name[name]
        schedule = arm.algorithm.get("schedule")
        if schedule is not None:
            arm = replace(
                arm, algorithm={**arm.algorithm, "schedule": replace(schedule, steps=(1, 0))}
            )
        result = laboratory.run(arm.config(base, seed=1))
        result.pop("wall_s")
        results.append(result)
    Path(folder, "results.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.megatron
def test_a_run_after_others_equals_a_fresh_one(tmp_path: Path) -> None:
    code = f"from tests.benchmarks.test_experiments import runs; runs({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fresh, other, again = json.loads((tmp_path / "results.json").read_text())
    assert again == fresh
    assert other["steps"] != fresh["steps"]
    assert any(step["effective_batch"] for step in fresh["steps"])


def test_every_arm_is_a_valid_run() -> None:
    base = base_config()
    names = [arm.name for arm in arms(base)]
    assert len(set(names)) == len(names)
    assert len(SEEDS) >= 3
    for arm, seed in jobs(base):
        config = arm.config(base, seed)
        Schedule(config.algorithm, seed)
        assert config.prompts_per_step == base.prompts_per_step
        assert config.algorithm.num_rollouts == base.algorithm.num_rollouts
        assert config.steps == base.steps


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.claim("a", 0)
    assert not store.claim("a", 0)  # in progress elsewhere
    store.forget_claims()  # interrupted
    assert store.claim("a", 0)
    store.write("a", 0, {"seed": 0, "x": float("nan")})
    store.forget_claims()
    assert not store.claim("a", 0)
    assert store.read("a") == [{"seed": 0, "x": None}]


def test_a_changed_study_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    base = base_config()
    Store(tmp_path, base)
    Store(tmp_path, base)
    with pytest.raises(SystemExit, match="another study"):
        Store(tmp_path, replace(base, steps=base.steps + 1))


def test_differences_are_paired_by_prompt_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small(str(tmp_path))  # eight responses a prompt
    monkeypatch.setattr(report, "base_config", lambda: base)
    store = Store(tmp_path)
    for name, seed, correct in (
        ("a", 0, [8, 4]),
        ("a", 1, [8, 8]),
        ("b", 0, [4, 0]),
        ("b", 1, [8, 0]),
        ("b", 2, [0, 0]),  # no partner
    ):
        store.write(name, seed, {"seed": seed, "eval": {"correct": correct}})
    got = report.difference(store, "a", "b", "pass@1")
    assert got is not None
    assert got.mean == pytest.approx(0.5)
    assert got.by_seed == pytest.approx((0.5, 0.5))
    assert got.prompt_error == pytest.approx(np.std([0.25, 0.75], ddof=1) / math.sqrt(2))
    assert report.difference(store, "a", "c", "pass@1") is None


def test_toy_gradient_is_the_derivative() -> None:
    for k in (1, 4, 16):
        for theta in (0.3, 0.8, 1.0):
            low, high = (toy.expected_max(theta + d, k)[0] for d in (-1e-4, 1e-4))
            assert toy.expected_max(theta, k)[1] == pytest.approx((high - low) / 2e-4, rel=1e-4)


def test_toy_moments_are_those_of_the_estimates() -> None:
    theta, k = 0.9, 4
    exact, variance = toy.expected_max(theta, k)[1], {}
    for name in toy.NAMES:
        scale = k / toy.N if name == "pkpo_centred" else 1.0
        mean, variance[name] = toy.moments(table(name, toy.N, k), theta, scale=scale)
        assert mean == pytest.approx(exact, rel=1e-10)  # unbiased
        got = toy.estimates(name, k, theta, 20_000, seed=1)
        assert got.mean() == pytest.approx(mean, abs=5 * got.std() / np.sqrt(20_000))
        assert got.var() == pytest.approx(variance[name], rel=0.08)
    assert variance["pkpo_sloo_minus_one"] < variance["pkpo_s"]
    assert variance["pkpo_sloo"] < variance["pkpo_s"]
    mean, naive = toy.naive_moments(k, theta)
    assert mean == pytest.approx(exact, rel=1e-10)
    assert naive > variance["pkpo_s"]


def test_toy_moments_in_closed_form() -> None:
    """k = 1 of s: the mean of g z over n draws, whose variance is that of one draw over n."""
    theta = 0.5
    z = np.linspace(-8, 8, 400_001)
    chance = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    one = toy.reward(theta + toy.SIGMA * z) * z / toy.SIGMA
    mean = (one * chance).sum()
    want = ((one**2 * chance).sum() - mean**2) / toy.N
    got = toy.moments(table("pkpo_s", toy.N, 1), theta)
    assert got == pytest.approx((mean, want), rel=1e-6)


def test_larger_k_prefers_a_riskier_mean() -> None:
    best = [toy.best_theta(k) for k in toy.KS]
    assert best == sorted(best)
