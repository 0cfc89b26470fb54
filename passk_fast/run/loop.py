"""The training loop: sample, update, sync, evaluate, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.data.types import RolloutGroup
from passk_fast.errors import ExitCode
from passk_fast.run.clock import Clock
from passk_fast.run.engines import Engines
from passk_fast.run.guards import Guards
from passk_fast.run.metrics import Record, step_record
from passk_fast.run.progress import Progress
from passk_fast.run.sampling import Sampling
from passk_fast.run.update import PolicyUpdate
from passk_fast.run.verifier_failures import VerifierFailures


class Report(Protocol):
    """Takes what the loop has to say."""

    def step(self, record: Mapping[str, object]) -> None:
        """The record of one step."""

    def samples(self, step: int, groups: SequenceOf[RolloutGroup]) -> None:
        """The groups of one step."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts of a run and the loop that uses them. All ranks call it together."""

    config: RunConfig
    engines: Engines
    sampling: Sampling
    guards: Guards
    verifier_failures: VerifierFailures
    update: PolicyUpdate
    sync: Callable[[], None]
    """Give the engines the weights as they are now."""
    evaluate: Callable[[int], Record]
    """Given a step, the part of its record that says how held-out prompts went."""
    save: Callable[[Mapping[str, object]], None]
    """Write a checkpoint with the step's record, unless there is one of this step."""
    stop: Callable[[], bool]
    """Whether a signal asks to stop."""
    report: Report
    schedule: Schedule
    progress: Progress

    def train(self) -> ExitCode:
        """All remaining steps; DONE, or PREEMPTED after a signal and a checkpoint."""
        config, progress, clock = self.config, self.progress, Clock()
        self.sync()
        if progress.step == 0:
            with clock.span("eval"):
                record = self.evaluate(0)
            self.report.step({"step": 0, **record, "time": clock.take()})
        while progress.step < config.steps:
            step = progress.step + 1
            evaluates = is_due(step, config.eval.every, config.steps)
            saves = is_due(step, config.checkpoint.every, config.steps)

            # P groups of N verified responses, with the advantages that the estimator gives them.
            batch = self.sampling.next_batch(progress.step, clock)
            failures = self.verifier_failures.check(batch.stats, batch.advantages_PN.size)
            self.guards.check_advantages(batch)
            if not (evaluates or saves):  # both want the weights of this step alone
                self.sampling.start_ahead(step)

            trains = self.update.trains(batch)
            if trains:
                self.engines.sleep()
            update = self.update(batch, clock)
            self.sampling.wait(clock)
            if trains:  # if not, the engines have these weights
                with clock.span("sync"):
                    self.sync()

            record = step_record(batch, update, self.schedule, progress, config)
            if failures:
                record["verifier_errors"] = failures
            self.schedule.observe(record)
            progress.step = step
            if evaluates:
                with clock.span("eval"):
                    record |= self.evaluate(step)
                self.report.samples(step, batch.groups)
            if saves:
                with clock.span("checkpoint"):
                    self.save({**record, "time": clock.so_far()})
            record["time"] = clock.take()
            self.report.step(record)
            if self.stop():
                self.save(record)
                return ExitCode.PREEMPTED
        return ExitCode.DONE


def is_due(step: int, every: int, last: int) -> bool:
    """Whether a step is the `every`-th (0: never) or the last."""
    return step == last or bool(every and step % every == 0)
