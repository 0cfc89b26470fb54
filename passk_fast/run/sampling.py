"""The batch of each step: prompts in order, their groups with advantages, the next batch ahead.

With rollout.max_off_policy_steps the next batch is sampled in a thread of this class while the
trainer works. A checkpoint keeps what `state_dict` says: the state after the last batch handed out.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import numpy as np

from passk_fast.advantage.masked import masked_advantages
from passk_fast.advantage.metrics import sampled_entropy
from passk_fast.advantage.noise import flip_negatives
from passk_fast.advantage.schedule import Schedule, Stage
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import (
    InformativeShare,
    RoundSampler,
    SampledBatch,
    sample_batch,
)
from passk_fast.run.clock import Clock
from passk_fast.run.engines import Engines
from passk_fast.seeding import seed_for
from passk_fast.tasks import PromptOrder, check_binary
from passk_fast.tasks.difficulty import Difficulty


class SamplingState(TypedDict):
    """What a checkpoint keeps of sampling: JSON values."""

    order: dict[str, int]
    informative_share: dict[str, float]
    difficulty: dict[str, object]


@dataclass(frozen=True)
class _Ahead:
    """A batch that is being sampled in the thread."""

    step: int
    stages: tuple[Stage, ...]
    """The estimators that its advantages are computed with."""
    batch: Future[SampledBatch]


class Sampling:
    """Gives every step its batch. All ranks call everything together."""

    def __init__(
        self,
        config: RunConfig,
        engines: Engines,
        prompts: SequenceOf[Prompt],
        schedule: Schedule,
        order: PromptOrder,
    ) -> None:
        """ConfigError where rollout.* does not go with the schedule or the tasks."""
        schedule.check_rollout(config.rollout)
        if config.rollout.early_stop:
            check_binary((prompt.task for prompt in prompts), config.data)
        self._config, self._engines, self._prompts = config, engines, prompts
        self._schedule, self._order = schedule, order
        self._share = InformativeShare()
        self._difficulty = Difficulty(len(prompts))
        self._state = self._current_state()
        self._ahead: _Ahead | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")

    def next_batch(self, step: int, clock: Clock) -> SampledBatch:
        """The batch of a step, counted from 0: the one sampled ahead, or sampled now.

        Phases: "decode", "verify" and "idle" (waiting for other engines); of a batch sampled ahead
        "overlap_sampling_s", the seconds that its sampling took during training. Raises what
        sampling ahead raised.
        """
        with clock.span("decode") as span:
            ahead, self._ahead = self._ahead, None
            if ahead is None:
                batch = self._sample(step)
                span.split(verify=batch.stats.verify_s, idle=batch.stats.idle_s)
            else:
                assert ahead.step == step, f"sampled ahead for step {ahead.step}, not {step}"
                batch = replace(ahead.batch.result(), off_policy_steps=1)
                clock.concurrent("overlap_sampling_s", batch.stats.engine_s)
                if ahead.stages != self._schedule.stages(step):  # a plateau has ended meanwhile
                    advantages_PN = self._advantages(batch.groups, step)
                    batch = replace(batch, advantages_PN=advantages_PN)
        self._remember(batch, step)
        return batch

    def start_ahead(self, step: int) -> None:
        """Begin to sample the batch of a step with the weights as they are now.

        Does nothing where rollout.max_off_policy_steps is 0.
        """
        if self._config.rollout.max_off_policy_steps:
            batch = self._thread.submit(self._sample, step)
            self._ahead = _Ahead(step, self._schedule.stages(step), batch)

    def wait(self, clock: Clock) -> None:
        """Wait, in phase "decode", for the batch that is sampled ahead; raises what it raised."""
        if self._ahead is not None:
            with clock.span("decode"):
                self._ahead.batch.result()

    def close(self) -> None:
        """End the thread. One that still samples is not waited for: a rank may have been lost."""
        is_idle = self._ahead is None or self._ahead.batch.done()
        self._thread.shutdown(wait=is_idle, cancel_futures=True)

    def state_dict(self) -> SamplingState:
        """As of the last batch handed out: what was sampled ahead since does not count."""
        return self._state

    def load_state_dict(self, state: SamplingState) -> None:
        """Continue from `state_dict`; DataError where the data set has another size now."""
        self._order.load_state_dict(state["order"])
        self._share = InformativeShare(**state["informative_share"])
        self._difficulty.load_state_dict(state["difficulty"])
        self._state = self._current_state()

    def _current_state(self) -> SamplingState:
        return {
            "order": self._order.state_dict(),
            "informative_share": asdict(self._share),
            "difficulty": self._difficulty.state_dict(),
        }

    def _remember(self, batch: SampledBatch, step: int) -> None:
        """Learn how difficult the prompts were (data.curriculum), and fix the state to be saved."""
        if self._config.data.curriculum:
            for index, group in zip(batch.indices, batch.groups, strict=True):
                tried = int(np.isfinite(group.rewards).sum())
                if self._config.rollout.truncated == "mask":
                    tried -= sum(group.truncated)
                correct = int((group.rewards == 1.0).sum())
                self._difficulty.observe(index, correct, tried, step + 1)
        self._state = self._current_state()

    def _sample(self, step: int) -> SampledBatch:
        config, schedule = self._config, self._schedule
        zero_advantage_rows = schedule.zero_advantage_rows(step)
        informative_rows = tuple((~zero_advantage_rows).tolist())
        curriculum = config.data.curriculum

        def chance(prompt: int) -> float:
            """Of taking a prompt instead of passing over it."""
            informative = self._difficulty.informative_chance(prompt, informative_rows)
            return 1.0 - curriculum * (1.0 - informative)

        def collect(indices: list[int], first: int) -> tuple[list[RolloutGroup], CollectStats]:
            return self._engines.sample(
                SampleRequest(
                    prompts=[self._prompts[i] for i in indices],
                    num_rollouts=config.algorithm.num_rollouts,
                    seed=seed_for(config.seed, "sampling", step),
                    first_key=first,
                    zero_advantage_rows=zero_advantage_rows if config.rollout.early_stop else None,
                )
            )

        return sample_batch(
            RoundSampler(
                take=lambda count: self._order.take(count, chance if curriculum else None),
                collect=collect,
                advantages=lambda groups: self._advantages(groups, step),
            ),
            wanted=config.prompts_per_step,
            cap=int(config.prompts_per_step * config.rollout.dynamic_sampling),
            share=self._share,
            multiple=self._engines.data_size,
        )

    def _advantages(self, groups: list[RolloutGroup], step: int) -> np.ndarray:
        return group_advantages(groups, self._schedule, self._config, step)


def group_advantages(
    groups: SequenceOf[RolloutGroup], schedule: Schedule, config: RunConfig, step: int
) -> np.ndarray:
    """What the schedule says about P groups of N responses at a step, float64 [P, N].

    Groups that were stopped early have advantage zero, and with rollout.truncated = "mask"
    responses that were cut (`masked_advantages`). Noise rewards (algorithm.flip_negatives)
    count here alone, not in what is recorded.
    """
    rewards_PN = np.stack([group.rewards for group in groups])
    if config.rollout.truncated == "mask":
        masked_PN = np.array([group.truncated for group in groups])
        return masked_advantages(schedule, step, rewards_PN, masked_PN)
    stopped_P = np.isnan(rewards_PN).any(axis=1)
    rewards_PN[stopped_P] = 0.0  # any reward will do: a stopped group has no gradient
    if config.algorithm.flip_negatives > 0:
        seed = seed_for(config.seed, "noise", step)
        rewards_PN = flip_negatives(rewards_PN, config.algorithm.flip_negatives, seed)
    advantages_PN = schedule.advantages(step, rewards_PN, sampled_entropy(groups))
    advantages_PN[stopped_P] = 0.0
    return advantages_PN
