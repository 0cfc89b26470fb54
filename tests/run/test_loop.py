"""The loop with stand-ins for the actor and the engines: what happens in which order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, replace
from typing import Any

import pytest

from passk_fast.config import (
    CheckpointConfig,
    EvalConfig,
    OptimConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
)
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.errors import ExitCode
from passk_fast.report.records import to_line, without_time
from passk_fast.rollout.collect import CollectStats
from passk_fast.run.evaluation import Evaluation
from passk_fast.run.loop import Trainer, is_due
from passk_fast.run.parts import Records, RunState, make_trainer
from passk_fast.tasks import PromptOrder
from tests.run.cases import FakeEngines, RecordingActor, Tokenizer, config, prompts

pytestmark = pytest.mark.megatron
PROMPTS = 20


class Listener(Records):
    """Notes records and samples in the order of events."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def step(self, record: Mapping[str, object]) -> None:
        super().step(record)
        self.events.append(f"record {record['step']}")

    def samples(self, step: int, groups: Any) -> None:
        assert all(isinstance(group, RolloutGroup) for group in groups)
        self.events.append(f"samples {step}")


def configured(steps: int, every: int = 0, ahead: int = 0) -> RunConfig:
    """Evaluations and checkpoints every so many steps; four prompts per step."""
    return replace(
        config(PolicyLoss(tis_clip=2.0)),
        steps=steps,
        prompts_per_step=4,
        rollout=RolloutConfig(max_off_policy_steps=ahead),
        eval=EvalConfig(every=every, num_prompts=2, num_rollouts=4),
        checkpoint=CheckpointConfig(every=every),
    )


class Slow(FakeEngines):
    """Says that more of its time went to verifying and waiting than it took in all."""

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        time.sleep(0.05)
        groups, stats = super().sample(request)
        return groups, replace(stats, verify_s=0.03, idle_s=0.04)


def make(
    run: RunConfig,
    state: RunState | None = None,
    kind: type[FakeEngines] = FakeEngines,
    correct: int | None = None,
    norms: SequenceOf[float] = (),
) -> tuple[Trainer, list[str], Listener]:
    """A trainer of stand-ins, the events that it causes, and its report.

    `correct`: how many responses of each group are, instead of as many as its number says. `norms`
    are those of its gradients.
    """
    events: list[str] = []
    report, engines = Listener(events), kind(events)
    actor: Any = RecordingActor(events, norms=norms)
    tokenizer: Any = Tokenizer()
    order = PromptOrder(PROMPTS, 0)
    data = prompts(PROMPTS)
    if correct is not None:
        data = [replace(prompt, id=str(correct)) for prompt in data]
    trainer = make_trainer(run, actor, engines, tokenizer, data, order, state=state)
    trainer = replace(
        trainer,
        evaluate=Evaluation(run, engines, prompts(3)),
        save=lambda record: events.append(f"save {trainer.progress.step}"),
        report=report,
    )
    return trainer, events, report


def state_of(trainer: Trainer) -> RunState:
    """As a checkpoint would keep it."""
    state: RunState = json.loads(
        json.dumps(
            {
                "progress": asdict(trainer.progress),
                "sampling": trainer.sampling.state_dict(),
                "schedule": trainer.schedule.state_dict(),
                "gradient_norms": trainer.guards.norms.state_dict(),
            }
        )
    )
    return state


SYNC = ["wake up", "take weights"]
EVALUATION = ["wake up", "sample"]
STEP = ["sample", "sleep", "optimizer step", *SYNC]


def test_the_order_of_a_run() -> None:
    trainer, events, _ = make(configured(steps=2, every=2))
    assert trainer.train() == ExitCode.DONE
    assert events == [
        *["wake up", "take weights, verified"],
        *[*EVALUATION, "record 0"],
        *[*STEP, "record 1"],
        *[*STEP, *EVALUATION, "samples 2", "save 2", "record 2"],
    ]


def test_a_checkpoint_has_the_steps_record() -> None:
    """A process that dies between the two has not reported it."""
    trainer, _, report = make(configured(steps=2, every=2))
    saved: list[Mapping[str, Any]] = []
    replace(trainer, save=saved.append).train()
    (record,) = saved
    reported: Mapping[str, Any] = report.records[-1]
    assert without_time(record) == without_time(reported)
    assert reported["time"]["checkpoint"] >= 0
    assert record["time"].keys() == reported["time"].keys() - {"checkpoint"}


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_without_gradients_trains_and_syncs_nothing(ahead: int) -> None:
    trainer, events, report = make(configured(steps=2, ahead=ahead), correct=4)
    trainer.train()
    expected = ["wake up", "take weights, verified", *EVALUATION, "record 0"]
    expected += ["sample", "record 1", "sample", *EVALUATION, "samples 2", "save 2", "record 2"]
    assert sorted(events) == sorted(expected)  # what is sampled ahead comes when it comes
    assert [record["trained_tokens"] for record in report.records[1:]] == [0, 0]
    trainer.sampling.close()


def test_the_next_batch_is_sampled_while_one_is_trained() -> None:
    trainer, _, report = make(configured(steps=4, every=2, ahead=1))
    assert trainer.train() == ExitCode.DONE
    # the steps before an evaluation, a checkpoint and the end sample nothing ahead
    assert [record["off_policy_steps"] for record in report.records[1:]] == [0, 1, 0, 1]
    times = [record["time"] for record in report.records[1:]]
    assert ["overlap_sampling_s" in t for t in times if isinstance(t, dict)] == [
        False,
        True,
        False,
        True,
    ]
    trainer.sampling.close()


@pytest.mark.parametrize("ahead", [0, 1])
def test_times_are_never_negative_and_add_up(ahead: int) -> None:
    trainer, _, report = make(configured(steps=4, every=3, ahead=ahead), kind=Slow)
    trainer.train()
    for record in report.records:
        times = record["time"]
        assert isinstance(times, dict)
        assert min(times.values()) >= 0
        total = times.pop("total")
        times.pop("overlap_sampling_s", None)
        assert 0.5 * total <= sum(times.values()) <= total  # little is in no phase
    trainer.sampling.close()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_resumed_run_is_the_uninterrupted_one(ahead: int) -> None:
    run = configured(steps=4, every=2, ahead=ahead)
    whole, _, expected = make(run)
    whole.train()
    first, _, before = make(replace(run, steps=2))
    first.train()
    second, events, after = make(run, state_of(first))
    second.train()
    records = [*before.records, *after.records]
    assert [record["step"] for record in after.records] == [3, 4]
    assert events[:3] == ["wake up", "take weights, verified", "sample"]  # evaluated before
    assert [to_line(without_time(record)) for record in records] == [
        to_line(without_time(record)) for record in expected.records
    ]
    for trainer in (whole, first, second):
        trainer.sampling.close()


def updates(events: list[str]) -> list[str]:
    """The optimizer steps among the events."""
    return [event for event in events if event.endswith("step")]


def test_a_resumed_run_skips_the_spikes_of_the_uninterrupted_one() -> None:
    norms = [0.5 + 0.001 * i for i in range(30)]
    norms[20] = norms[24] = 9.0  # one before the checkpoint, one after
    optim = OptimConfig(spike_factor=4.0, skip_spikes=True)
    run = replace(configured(steps=30), optim=optim)
    whole, every, expected = make(run, norms=norms)
    whole.train()
    first, before, _ = make(replace(run, steps=24), norms=norms)
    first.train()
    done = len(updates(before))  # some steps have nothing to train
    second, events, after = make(run, state_of(first), norms=norms[done:])
    second.train()

    assert updates(before) + updates(events) == updates(every)
    assert [i for i, event in enumerate(updates(every)) if event == "skipped step"] == [20, 24]
    assert 20 < done <= 24
    assert [to_line(without_time(record)) for record in after.records] == [
        to_line(without_time(record)) for record in expected.records[25:]
    ]
    assert after.records[-1]["gradient_spikes"] == 2
    assert second.guards.norms.state_dict() == whole.guards.norms.state_dict()


def test_a_signal_saves_and_ends_the_run() -> None:
    trainer, events, _ = make(configured(steps=5))
    stops = iter([False, True])
    trainer = replace(trainer, stop=lambda: next(stops))
    assert trainer.train() == ExitCode.PREEMPTED
    assert trainer.progress.step == 2
    assert events[-2:] == ["record 2", "save 2"]


def test_without_held_out_prompts_nothing_is_evaluated() -> None:
    trainer, events, report = make(configured(steps=1))
    evaluate = Evaluation(trainer.config, trainer.engines, [])
    replace(trainer, evaluate=evaluate).train()
    assert not any("eval" in record for record in report.records)
    assert events.count("sample") == 1


def test_what_is_due() -> None:
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if is_due(step, 0, 7)] == [7]
