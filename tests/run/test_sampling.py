"""Batches in order, advantages once per step, the next batch in a thread that ends with the run."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passk_fast.advantage import advantages as estimate
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import DataConfig, PolicyLoss, RolloutConfig, RunConfig, ScheduleConfig
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.errors import DataError
from passk_fast.rollout.collect import CollectStats
from passk_fast.run.clock import Clock
from passk_fast.run.sampling import Sampling
from passk_fast.tasks import PromptOrder
from tests.run.cases import FakeEngines, advantages, config, group, prompts

pytestmark = pytest.mark.megatron
PROMPTS = 20


def configured(
    rollout: dict[str, Any] | None = None, curriculum: float = 0.0, **algorithm: Any
) -> RunConfig:
    """Four prompts per step."""
    return replace(
        config(PolicyLoss(tis_clip=2.0), **algorithm),
        prompts_per_step=4,
        rollout=RolloutConfig(**(rollout or {})),
        data=DataConfig(curriculum=curriculum),
    )


AHEAD = configured({"max_off_policy_steps": 1})


def make(run: RunConfig, engines: Any = None, schedule: Schedule | None = None) -> Sampling:
    """Over PROMPTS prompts."""
    return Sampling(
        run,
        engines or FakeEngines(),
        prompts(PROMPTS),
        schedule or Schedule(run.algorithm, run.seed),
        PromptOrder(PROMPTS, 0),
    )


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_a_batch_has_the_next_prompts_and_their_advantages() -> None:
    engines = FakeEngines()
    sampling, order = make(configured(), engines), PromptOrder(PROMPTS, 0)
    for step in range(2):
        batch = sampling.next_batch(step, Clock())
        assert batch.indices == order.take(4)
        assert (batch.end, batch.rounds, batch.off_policy_steps) == (4, 1, 0)
        rewards_PN = np.stack([g.rewards for g in batch.groups])
        np.testing.assert_array_equal(batch.advantages_PN, estimate("passk", rewards_PN, 2))
    assert len({request.seed for request in engines.requests}) == 2


def test_with_dynamic_sampling_rounds_go_on_where_the_last_one_ended() -> None:
    engines = FakeEngines()
    sampling = make(configured({"dynamic_sampling": 4.0}), engines)
    batch = sampling.next_batch(0, Clock())
    assert batch.rounds == len(engines.requests) > 1
    sampled = np.cumsum([0, *(len(request.prompts) for request in engines.requests)])
    assert [request.first_key for request in engines.requests] == sampled[:-1].tolist()
    assert batch.informative_P[: batch.end].sum() == 4
    rewards_PN = np.stack([g.rewards for g in batch.groups])
    np.testing.assert_array_equal(batch.advantages_PN, estimate("passk", rewards_PN, 2))


def test_advantages_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = Schedule.advantages

    def counted(self: Schedule, *given: Any) -> np.ndarray:
        calls.append(len(given[1]))
        return compute(self, *given)

    monkeypatch.setattr(Schedule, "advantages", counted)
    batch = make(configured({"dynamic_sampling": 4.0})).next_batch(0, Clock())
    assert len(calls) == batch.rounds
    assert sum(calls) == len(batch.groups)


def test_early_stop_tells_the_engines_which_rows_have_no_advantage() -> None:
    engines = FakeEngines()
    run = configured({"early_stop": True}, loss_denominator="sequences")
    make(run, engines).next_batch(0, Clock())
    (request,) = engines.requests
    assert request.zero_advantage_rows is not None
    assert request.zero_advantage_rows.tolist() == [True, False, False, True, True]


def test_a_batch_sampled_ahead_is_the_next_one(no_thread_is_left: None) -> None:
    engines = FakeEngines()
    sampling, plain = make(AHEAD, engines), make(AHEAD)
    first, clock = sampling.next_batch(0, Clock()), Clock()
    sampling.start_ahead(1)
    sampling.wait(clock)
    second = sampling.next_batch(1, clock)
    assert (first.off_policy_steps, second.off_policy_steps) == (0, 1)
    assert [name.partition("_")[0] for name in engines.threads] == ["MainThread", "sampling"]
    assert first.indices + second.indices == [
        i for step in range(2) for i in plain.next_batch(step, Clock()).indices
    ]
    taken = clock.take()
    assert taken["overlap_sampling_s"] == 0.25
    assert "verify" not in taken
    sampling.close()


def test_nothing_is_sampled_ahead_unless_the_run_says_so() -> None:
    engines = FakeEngines()
    sampling = make(configured(), engines)
    sampling.start_ahead(0)
    sampling.wait(Clock())
    assert engines.requests == []
    sampling.close()


class Broken(FakeEngines):
    """Fails in another thread than the main one."""

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        if threading.current_thread() is not threading.main_thread():
            raise DataError("prompt 7 cannot be encoded")
        return super().sample(request)


def test_an_error_of_sampling_ahead_surfaces(no_thread_is_left: None) -> None:
    sampling = make(AHEAD, Broken())
    sampling.next_batch(0, Clock())
    sampling.start_ahead(1)
    with pytest.raises(DataError, match="prompt 7"):
        sampling.wait(Clock())
    with pytest.raises(DataError, match="prompt 7"):
        sampling.next_batch(1, Clock())
    sampling.close()


class Stuck(FakeEngines):
    """Samples ahead until it is let go, as a rank does that waits for a lost one."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        if threading.current_thread() is not threading.main_thread():
            self.let_go.wait(60)
        return super().sample(request)


def test_a_run_that_ends_does_not_wait_for_a_thread_that_is_stuck() -> None:
    engines = Stuck()
    sampling = make(AHEAD, engines)
    sampling.start_ahead(0)
    sampling.close()  # the test's own time-out would be the failure
    engines.let_go.set()


def test_a_batch_sampled_ahead_follows_a_plateau_that_has_ended_meanwhile() -> None:
    run = configured({"max_off_policy_steps": 1}, schedule=ScheduleConfig(
        kind="plateau", ks=(2, 1), patience=1
    ))  # fmt: skip
    schedule = Schedule(run.algorithm, run.seed)
    sampling = make(run, schedule=schedule)
    sampling.start_ahead(0)
    sampling.wait(Clock())
    for value in (0.5, 0.4):
        schedule.observe({"pass@k": value})
    assert schedule.stages(0)[0].k == 1
    batch = sampling.next_batch(0, Clock())
    rewards_PN = np.stack([g.rewards for g in batch.groups])
    np.testing.assert_array_equal(batch.advantages_PN, estimate("passk", rewards_PN, 1))
    sampling.close()


@pytest.mark.parametrize(
    "run",
    [configured(), configured({"dynamic_sampling": 3.0}, curriculum=0.9), AHEAD],
    ids=["plain", "dynamic sampling with curriculum", "ahead"],
)
def test_sampling_resumes_where_it_was(run: RunConfig) -> None:
    whole, first, second = make(run), make(run), make(run)
    expected = [whole.next_batch(step, Clock()).indices for step in range(6)]
    for step in range(3):
        first.next_batch(step, Clock())
    first.start_ahead(3)  # lost with the process: not part of what is saved
    first.wait(Clock())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.next_batch(step, Clock()).indices for step in range(3, 6)] == expected[3:]
    for sampling in (whole, first, second):
        sampling.close()


def test_stopped_groups_get_no_advantage_and_leave_the_others_alone() -> None:
    rewards = np.array([[1, 1, 1, math.nan], [1, 0, 0, 0], [0, 0, 1, 1]])
    got = advantages([group(list(row)) for row in rewards], loss_denominator="sequences")
    assert not got[0].any()
    np.testing.assert_array_equal(got[1:], estimate("passk", rewards[1:], 2))


def test_noise_rewards_change_advantages_and_are_seeded_by_the_step() -> None:
    groups = [group([1.0, 0.0, 0.0, 0.0]) for _ in range(50)]
    noisy = advantages(groups, flip_negatives=0.5)
    assert (noisy != advantages(groups)).any()
    np.testing.assert_array_equal(noisy, advantages(groups, flip_negatives=0.5))
