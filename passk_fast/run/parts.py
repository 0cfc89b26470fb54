"""Puts the parts of a trainer together around an actor and engines that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

from passk_fast.actor.actor import Actor
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, RolloutGroup
from passk_fast.run.engines import Engines, WeightHandover
from passk_fast.run.guards import Guards
from passk_fast.run.loop import Trainer
from passk_fast.run.metrics import Record
from passk_fast.run.progress import Progress
from passk_fast.run.sampling import Sampling
from passk_fast.run.state import RunState
from passk_fast.run.update import PolicyUpdate
from passk_fast.run.verifier_failures import VerifierFailures
from passk_fast.tasks import PromptOrder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Records:
    """A report that keeps the records of a run in a list."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, object]] = []

    def step(self, record: Mapping[str, object]) -> None:
        self.records.append(record)

    def samples(self, step: int, groups: SequenceOf[RolloutGroup]) -> None:
        """Groups are not kept."""


def make_trainer(
    config: RunConfig,
    actor: Actor,
    engines: Engines,
    tokenizer: PreTrainedTokenizerBase,
    prompts: SequenceOf[Prompt],
    order: PromptOrder,
    *,
    state: RunState | None = None,
    checks_logprobs: bool = True,
) -> Trainer:
    """A trainer that neither evaluates nor saves, and that reports to `Records`.

    `dataclasses.replace` gives it more. `state` is that of the checkpoint that the actor was loaded
    from; `checks_logprobs` is that of `Guards`.
    """
    progress, schedule = Progress(), Schedule(config.algorithm, config.seed)
    sampling = Sampling(config, engines, prompts, schedule, order)
    if state:
        progress = Progress(**state["progress"])
        schedule.load_state_dict(state["schedule"])
        sampling.load_state_dict(state["sampling"])
    device = actor.mesh.device
    prints = actor.mesh.rank == 0
    guards = Guards(
        config, device, tokenizer, progress, prints=prints, checks_logprobs=checks_logprobs
    )
    if state:
        guards.norms.load_state_dict(state.get("gradient_norms", ()))
    return Trainer(
        config=config,
        engines=engines,
        sampling=sampling,
        guards=guards,
        verifier_failures=VerifierFailures(config.rollout.max_verifier_failures, prints=prints),
        update=PolicyUpdate(config, actor, schedule, guards, progress),
        sync=WeightHandover(engines, actor, config.rollout.verify_weights),
        evaluate=no_evaluation,
        save=no_checkpoint,
        stop=never,
        report=Records(),
        schedule=schedule,
        progress=progress,
    )


def no_evaluation(step: int) -> Record:
    """Adds nothing to a record."""
    return {}


def no_checkpoint(record: Mapping[str, object]) -> None:
    """Saves nothing."""


def never() -> bool:
    """No signal is listened to."""
    return False
