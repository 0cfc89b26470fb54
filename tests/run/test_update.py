"""Which sequences an update trains, over which denominator, in how many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passk_fast.actor.logprob_gap import LogprobGap
from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import PolicyLoss, RunConfig
from passk_fast.errors import ConfigError, DivergedError
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.clock import Clock
from passk_fast.run.progress import Progress
from passk_fast.run.update import PolicyUpdate, loss_denominator, to_sequences
from tests.run.cases import RecordingActor, advantages, batch, config, gap_of, group, guards

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


def run_of(gaps: list[LogprobGap | None], *, ahead: int = 0, minibatches: int = 1) -> int:
    """Steps that a run in bfloat16 makes whose optimizer steps report these gaps."""
    run, progress = config(dtype="bfloat16", minibatches=minibatches), Progress()
    actor: Any = RecordingActor(gaps=gaps)
    guard = guards(progress, dtype="bfloat16")
    update = PolicyUpdate(run, actor, Schedule(run.algorithm, run.seed), guard, progress)
    sampled = replace(batch(REWARDS, [ADVANTAGES[0]] * 2), off_policy_steps=ahead)
    for step in range(len(gaps) // minibatches):
        try:
            update(sampled, Clock())
        except DivergedError:
            return step
    return len(gaps) // minibatches


def test_every_on_policy_step_is_compared() -> None:
    good, bad = gap_of(0.0), gap_of(0.6)
    assert run_of([good, good, bad, bad, bad, good]) == 4
    assert run_of([good, bad, bad, good, bad, bad]) == 6
    assert run_of([bad, bad, None, bad, bad]) == 3  # a step without a token says nothing
    assert run_of([bad] * 6, ahead=1) == 6  # sampled with the weights before
    # a step is all its minibatches: half of the tokens far apart are more than one in a hundred
    assert run_of([good, bad] * 4, minibatches=2) == 2


def test_the_worst_token_of_a_later_minibatch_is_found() -> None:
    run = config(minibatches=2)
    actor: Any = RecordingActor(gaps=[gap_of(0.0), gap_of(0.0, 0.25)])
    schedule = Schedule(run.algorithm, run.seed)
    update = PolicyUpdate(run, actor, schedule, guards(Progress()), Progress())
    with pytest.raises(DivergedError, match=r"'t6' \(id 6\) at position 10 of sequence 5"):
        update(batch(REWARDS, [[1.0] * 4] * 2), Clock())


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
