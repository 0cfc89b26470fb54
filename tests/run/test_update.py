"""Which sequences an update trains, over which denominator, in how many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passk_fast.advantage.schedule import Schedule
from passk_fast.config import PolicyLoss, RunConfig
from passk_fast.errors import ConfigError
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.clock import Clock
from passk_fast.run.progress import Progress
from passk_fast.run.update import PolicyUpdate, loss_denominator, to_sequences
from tests.run.cases import RecordingActor, advantages, batch, config, group, guards

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


@pytest.mark.parametrize("kind", ["response_tokens", "sequences"])
@pytest.mark.parametrize("loss", [PolicyLoss(), PolicyLoss(kl_coef=0.1)])
def test_masked_responses_are_neither_trained_nor_counted(kind: str, loss: PolicyLoss) -> None:
    groups = [group([1, 0, 0, 0], cut=[1, 3]), group([0, 0, 0, 0], cut=range(4))]
    sampled = replace(batch([[1, 0, 0, 0], [0] * 4]), groups=groups)
    run = config(loss, truncated="mask", loss_denominator=kind, skip_zero_advantage="off")
    actor, _ = update(replace(sampled, advantages_PN=advantages(groups, truncated="mask")), run)
    ((first, third),) = actor.packed
    assert (first.response_length, third.response_length) == (1, 3)
    assert actor.denominators == [4.0 if kind == "response_tokens" else 2.0]


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
