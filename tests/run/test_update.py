"""Which sequences an update trains, over which denominator, in how many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import PolicyLoss, RunConfig
from passk_fast.errors import ConfigError
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.clock import Clock
from passk_fast.run.progress import Progress
from passk_fast.run.update import PolicyUpdate, loss_denominator, to_sequences
from tests.run.cases import RecordingActor, batch, config, group, guards

pytestmark = pytest.mark.megatron
REWARDS = [[1, 0, 0, 0], [0, 0, 0, 0]]
ADVANTAGES = [[1.0, -0.5, -0.5, 0.0], [0.0] * 4]


def update(sampled: SampledBatch, run: RunConfig) -> tuple[RecordingActor, Progress]:
    """What one batch makes an actor do."""
    actor: Any = RecordingActor()
    progress = Progress()
    schedule = Schedule(run.algorithm, run.seed)
    PolicyUpdate(run, actor, schedule, guards(progress), progress)(sampled, Clock())
    return actor, progress


@pytest.mark.parametrize(
    ("kind", "want"), [("response_tokens", 10.0), ("informative_tokens", 7.0), ("sequences", 4.0)]
)
def test_denominators(kind: str, want: float) -> None:
    sequences = to_sequences([group([0, 1, 0, 1])], np.array([[0.0, 0.0, 1.0, -2.0]]))
    assert [s.token_ids[:2] for s in sequences] == [(1, 2)] * 4
    assert [s.response_length for s in sequences] == [1, 2, 3, 4]
    assert loss_denominator(kind, sequences) == want


def test_a_batch_without_anything_to_count_is_divided_by_one() -> None:
    assert loss_denominator("sequences", []) == 1.0
    assert loss_denominator("response_tokens", []) == 1.0


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, 3),
        ({"skip_zero_advantage": "off"}, 8),
        ({"loss": PolicyLoss(kl_coef=0.1)}, 8),
        ({"loss": PolicyLoss(entropy_coef=0.1)}, 8),
        ({"skip_zero_advantage": "on"}, 3),
    ],
)
def test_only_sequences_with_advantage_are_trained(options: dict[str, Any], trained: int) -> None:
    actor, _ = update(batch(REWARDS, ADVANTAGES), config(**options))
    assert [len(packed) for packed in actor.packed] == [trained]
    assert actor.denominators == [20.0]  # all response tokens, fixed before any were skipped


@pytest.mark.parametrize(
    ("options", "trains"),
    [
        ({}, False),
        ({"skip_zero_advantage": "off"}, True),
        ({"loss": PolicyLoss(kl_coef=0.1)}, True),
    ],
)
def test_a_batch_without_gradients_is_left_to_the_learning_rate_schedule(
    options: dict[str, Any], trains: bool
) -> None:
    run, progress = config(minibatches=2, **options), Progress()
    actor: Any = RecordingActor()
    schedule = Schedule(run.algorithm, run.seed)
    update = PolicyUpdate(run, actor, schedule, guards(progress), progress)
    sampled = batch([REWARDS[1]] * 2)
    assert update.trains(sampled) == trains
    report = update(sampled, Clock())
    assert len(report.results) == len(actor.packed) == len(actor.old_logprobs) == 2 * trains
    assert actor.events == ["optimizer step"] * 2 * trains
    assert progress.optimizer_step == 2
    assert report.lr == learning_rate(run.optim, 1, 2 * run.steps)
    assert not update.trains(replace(sampled, end=0))


def test_a_minibatch_without_gradients_takes_no_optimizer_step() -> None:
    actor, progress = update(batch(REWARDS, ADVANTAGES), config(minibatches=2))
    assert [len(packed) for packed in actor.packed] == [3]
    assert (actor.events, progress.optimizer_step) == (["optimizer step"], 2)


def test_surplus_groups_are_not_trained() -> None:
    sampled = replace(batch(REWARDS, [[1.0] * 4] * 2), end=1)
    actor, _ = update(sampled, config())
    assert [len(packed) for packed in actor.packed] == [4]


def test_each_minibatch_of_prompts_is_an_optimizer_step() -> None:
    actor, progress = update(batch(REWARDS, [[1.0] * 4] * 2), config(minibatches=2))
    assert [len(packed) for packed in actor.packed] == [4, 4]
    assert actor.old_logprobs == [True, True]  # the first step moves the weights of the second
    assert progress.optimizer_step == 2


def test_skipping_with_a_kl_term_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kl_coef.*skip_zero_advantage = 'auto'"):
        config(loss=PolicyLoss(kl_coef=0.1), skip_zero_advantage="on")
