"""Schedules: who gets which estimator when, what a checkpoint keeps, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.advantage import advantages, eta, table, zero_advantage_rows
from passk_fast.advantage.noise import flip_negatives
from passk_fast.advantage.schedule import Schedule, highest
from passk_fast.config import AlgorithmConfig, RunConfig, ScheduleConfig
from passk_fast.errors import ConfigError

N = 8
REWARDS = np.array([[1.0] * c + [0.0] * (N - c) for c in range(N + 1)])


def schedule(estimator: str = "passk", k: int = 4, **options: Any) -> Schedule:
    """A schedule of eight rollouts; what is not of AlgorithmConfig goes to ScheduleConfig."""
    own = {n: options.pop(n) for n in ("options", "match_norm", "match_norm_k", "flip_negatives")
           if n in options}  # fmt: skip
    algorithm = AlgorithmConfig(
        estimator=estimator, k=k, num_rollouts=N, schedule=ScheduleConfig(**options), **own
    )
    return Schedule(algorithm, seed=0)


def used(plan: Schedule, step: int) -> list[tuple[str, int]]:
    """(estimator, k) of the stages of a step."""
    return [(stage.estimator, stage.k) for stage in plan.stages(step)]


def test_constant() -> None:
    plan = schedule(k=2)
    assert used(plan, 0) == used(plan, 1000) == [("passk", 2)]
    np.testing.assert_array_equal(plan.advantages(3, REWARDS), advantages("passk", REWARDS, 2))
    np.testing.assert_array_equal(
        plan.zero_advantage_rows(0), zero_advantage_rows(table("passk", N, 2))
    )
    assert plan.lr_scale(5) == 1.0


def test_options_reach_the_estimator() -> None:
    plan = schedule("rs_grpo", 1, options={"beta": 3.0})
    want = advantages("rs_grpo", REWARDS, 1, beta=3.0)
    np.testing.assert_array_equal(plan.advantages(0, REWARDS), want)


def test_phases() -> None:
    plan = schedule(kind="phases", estimators=("passk", "grpo"), ks=(4, 1), steps=(10, 0))
    assert used(plan, 9) == [("passk", 4)]
    assert used(plan, 10) == used(plan, 999) == [("grpo", 1)]
    assert [plan.phase(step) for step in (0, 9, 10, 500)] == [0, 0, 1, 1]
    np.testing.assert_array_equal(plan.advantages(10, REWARDS), advantages("grpo", REWARDS, 1))


def test_phases_repeated() -> None:
    plan = schedule(
        kind="phases", estimators=("passk", "grpo"), ks=(4, 1), steps=(3, 2), repeat=True
    )
    assert [plan.phase(step) for step in range(11)] == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0]


def test_the_published_sequence_of_phases() -> None:
    """Pass@1 to step 100, Pass@k to 370, Pass@1 to 750 (arXiv 2508.10751)."""
    plan = schedule(kind="phases", estimators=("grpo", "passk", "grpo"), ks=(1, 4, 1),
                    steps=(100, 270, 0))  # fmt: skip
    assert [plan.phase(s) for s in (0, 99, 100, 369, 370, 749)] == [0, 0, 1, 1, 2, 2]


def test_linear() -> None:
    plan = schedule(k=6, kind="linear", ks=(1,), steps=(10,))
    ks = [plan.stages(step)[0].k for step in range(13)]
    assert ks[0] == 6
    assert ks[10:] == [1, 1, 1]
    assert all(a >= b for a, b in itertools.pairwise(ks))
    assert set(ks) == {1, 2, 3, 4, 5, 6}


def test_scaled_learning_rate_keeps_the_peak_step() -> None:
    plan = schedule(k=4, kind="phases", ks=(4, 2), steps=(5, 0), scale_lr="peak")
    peak = {k: eta(table("passk", N, k)).max() for k in (2, 4)}
    assert plan.lr_scale(4) == 1.0
    assert plan.lr_scale(5) * peak[2] == pytest.approx(peak[4])
    linear = schedule(k=6, kind="linear", ks=(1,), steps=(10,), scale_lr="peak")
    for step in (0, 3, 7, 12):
        k = linear.stages(step)[0].k
        want = eta(table("passk", N, 6)).max()
        assert linear.lr_scale(step) * eta(table("passk", N, k)).max() == pytest.approx(want)


def test_plateau_goes_on_when_the_metric_stalls() -> None:
    plan = schedule(kind="plateau", ks=(4, 2, 1), metric="pass@1", patience=2, min_delta=0.01)
    for value in (0.1, 0.2, 0.205):
        plan.observe({"pass@1": value})
    assert plan.phase(3) == 0
    plan.observe({"pass@1": 0.2})  # the second without a new best
    assert plan.phase(4) == 1
    for value in (0.1, 0.1):
        plan.observe({"pass@1": value})
    assert plan.phase(6) == 1
    plan.observe({"pass@1": 0.1})
    assert used(plan, 7) == [("passk", 1)]
    for _ in range(9):  # the last phase stays
        plan.observe({"pass@1": 0.0})
    assert plan.phase(99) == 2


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, 30))
def test_a_saved_plateau_continues_as_if_uninterrupted(values: list[float], cut: int) -> None:
    whole = schedule(kind="plateau", ks=(4, 2, 1), patience=2)
    for value in values:
        whole.observe({"pass@k": value})
    first = schedule(kind="plateau", ks=(4, 2, 1), patience=2)
    for value in values[:cut]:
        first.observe({"pass@k": value})
    second = schedule(kind="plateau", ks=(4, 2, 1), patience=2)
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.observe({"pass@k": value})
    assert second.state_dict() == whole.state_dict()


def test_adaptive_gives_pass_1_to_the_uncertain_half() -> None:
    plan = schedule(kind="adaptive", estimators=("grpo", "passk"), ks=(1, 4))
    rewards = REWARDS[1:6]
    entropy = np.array([0.2, 0.9, 0.5, 0.9, 0.1])
    got = plan.advantages(0, rewards, entropy)
    first = np.array([False, True, True, True, False])  # ceil of half of five
    np.testing.assert_array_equal(got[first], advantages("grpo", rewards, 1)[first])
    np.testing.assert_array_equal(got[~first], advantages("passk", rewards, 4)[~first])
    np.testing.assert_array_equal(
        plan.zero_advantage_rows(0), zero_advantage_rows(table("grpo", N, 1))
    )


def test_ranking_is_stable() -> None:
    np.testing.assert_array_equal(
        highest(np.array([1.0, 2.0, 1.0, 1.0]), 2), [True, True, False, False]
    )


def test_by_accuracy() -> None:
    plan = schedule(kind="by_accuracy", estimators=("grpo", "passk"), ks=(1, 2), tau=0.5)
    got = plan.advantages(0, REWARDS)
    np.testing.assert_array_equal(got, advantages("passk_piecewise", REWARDS, 2, tau=0.5))
    np.testing.assert_array_equal(
        plan.zero_advantage_rows(0), zero_advantage_rows(table("passk_piecewise", N, 2, tau=0.5))
    )


def test_norm_matched_control() -> None:
    plan = schedule("grpo", 1, match_norm="passk", match_norm_k=4)
    got, own = plan.advantages(0, REWARDS), advantages("grpo", REWARDS, 1)
    assert np.abs(got).sum() == pytest.approx(np.abs(advantages("passk", REWARDS, 4)).sum())
    np.testing.assert_allclose(got / np.abs(got).max(), own / np.abs(own).max(), rtol=1e-12)
    assert (plan.advantages(0, REWARDS[[0, 0]]) == 0).all()


def test_bootstrap_draws_anew_each_step() -> None:
    plan = schedule("passk_bootstrap", 4)
    assert (plan.advantages(0, REWARDS) == plan.advantages(0, REWARDS)).all()
    assert (plan.advantages(0, REWARDS) != plan.advantages(1, REWARDS)).any()


def test_noise_rewards() -> None:
    rewards = np.array([[0.0, 1.0] * 500] * 20)
    got = flip_negatives(rewards, 0.3, seed=1)
    assert (got[rewards == 1] == 1).all()
    assert got[rewards == 0].mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(got, flip_negatives(rewards, 0.3, seed=1))
    np.testing.assert_array_equal(flip_negatives(rewards, 0.0, seed=1), rewards)
    with pytest.raises(ValueError, match="share"):
        flip_negatives(rewards, 1.5, seed=0)
    assert not schedule(flip_negatives=0.1).zero_advantage_rows(0).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimator": "paskk"}, "algorithm.estimator.*Did you mean 'passk'"),
        ({"estimator": "pkpo_sloo_minus_one", "k": 1}, "algorithm.k: k must be at least 2"),
        ({"estimator": "pkpo_sloo", "k": 8}, "algorithm.k: k must be below n = 8"),
        ({"estimator": "maxrl", "k": 3}, "algorithm.k: estimator 'maxrl' has no k"),
        ({"options": {"tau": 0.5}}, "algorithm.options: 'tau' is an option of none"),
        (
            {"estimator": "pass1_no_easy", "k": 1, "options": {"tau": 2.0}},
            "algorithm.options: tau must be between 0 and 1",
        ),
        ({"match_norm": "what"}, "algorithm.match_norm: estimator 'what' is unknown"),
        (
            {"kind": "phases", "ks": (4, 9), "steps": (5, 0)},
            r"algorithm.schedule.ks\[1\]: k must be between 1 and n = 8",
        ),
        (
            {"kind": "phases", "estimators": ("passk", "gprpo"), "ks": (4, 1), "steps": (5, 0)},
            r"algorithm.schedule.estimators\[1\].*Did you mean 'grpo'",
        ),
        (
            {"estimator": "pkpo_sloo_minus_one", "kind": "linear", "ks": (1,), "steps": (5,)},
            "algorithm.schedule.ks: k must be at least 2",
        ),
        (
            {"estimator": "passk_full", "kind": "phases", "ks": (4, 2), "steps": (5, 0),
             "scale_lr": "peak"},
            "passk_full.*has no table",
        ),
    ],
)  # fmt: skip
def test_what_estimators_refuse_names_the_field(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schedule(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ks": (1, 2)}, "algorithm.schedule.ks has no effect with kind = 'constant'"),
        ({"kind": "phases", "ks": (4,), "steps": (1,)}, "schedule.ks must name two phases"),
        ({"kind": "phases", "ks": (4, 1), "steps": (1,)}, "schedule.steps must have one number"),
        ({"kind": "phases", "ks": (4, 1), "steps": (0, 5)}, "is never reached"),
        ({"kind": "phases", "ks": (4, 1), "steps": (5, 0), "repeat": True}, "is never reached"),
        ({"kind": "linear", "ks": (4, 1), "steps": (5,)}, "needs one last k"),
        ({"kind": "adaptive", "ks": (1,)}, "ks must hold two ks"),
        ({"kind": "adaptive", "ks": (1, 4), "share": 0.0}, "schedule.share must be between"),
        ({"kind": "by_accuracy", "ks": (1, 4), "tau": 1.0}, "schedule.tau must be between"),
        ({"kind": "adaptive", "ks": (1, 4), "scale_lr": "peak"}, "scale_lr has no effect"),
        ({"kind": "plateau", "ks": (4, 1), "patience": 0}, "schedule.patience must be positive"),
    ],
)
def test_schedules_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ScheduleConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"kind": "phases", "ks": (4, 1), "steps": (100, 0)},
            "algorithm.schedule.steps: phase 2 of 2 begins at step 100.*steps = 100: it is never",
        ),
        (
            {"kind": "linear", "ks": (1,), "steps": (100,)},
            "algorithm.schedule.steps: the last k is reached at step 100",
        ),
        (
            {"kind": "plateau", "ks": (4, 2, 1), "patience": 50},
            "algorithm.schedule.patience.*at step 100 at the earliest",
        ),
    ],
)
def test_a_phase_that_is_never_reached(options: dict[str, Any], words: str) -> None:
    algorithm = AlgorithmConfig(k=4, schedule=ScheduleConfig(**options))
    with pytest.raises(ConfigError, match=words):
        RunConfig(steps=100, algorithm=algorithm, prompts_per_step=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip_negatives": 0.1}, "algorithm.flip_negatives: a noise reward"),
        ({"match_norm": "grpo"}, "algorithm.match_norm: the norm counts"),
        ({"kind": "adaptive", "ks": (1, 4)}, "schedule.kind = 'adaptive': the entropy"),
        ({"kind": "plateau", "ks": (4, 2)}, "schedule.kind = 'plateau': its metric"),
        ({"estimator": "grpo", "k": 1}, "no effect with estimator 'grpo'"),
        ({"estimator": "pkpo_s"}, "no effect with estimator 'pkpo_s'"),
    ],
)
def test_early_stop_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.early_stop.*{words}"):
        schedule(**options).check_early_stop()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "passk_bootstrap"},
        {"kind": "by_accuracy", "ks": (1, 4)},
        {"kind": "phases", "estimators": ("passk", "grpo"), "ks": (4, 1), "steps": (5, 0)},
    ],
)
def test_early_stop_goes_with_what_a_count_decides(options: dict[str, Any]) -> None:
    schedule(**options).check_early_stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip_negatives": 0.1}, "flip_negatives"),
        ({"match_norm": "grpo"}, "match_norm"),
        ({"kind": "adaptive", "ks": (1, 4)}, "adaptive"),
        ({"estimator": "passk_bootstrap"}, "bootstrap"),
    ],
)
def test_refill_is_refused_where_groups_depend_on_each_other(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.dynamic_sampling does not go with .*{words}"):
        schedule(**options).check_separate_groups("rollout.dynamic_sampling")
    schedule().check_separate_groups("rollout.dynamic_sampling")
    schedule(kind="by_accuracy", ks=(1, 4)).check_separate_groups("rollout.dynamic_sampling")
