"""One step of Pass@k training, readable as the algorithm in the paper."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from passk_fast.actor.actor import Actor, StepResult
from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.advantage.metrics import evaluation, group_metrics, sampled_entropy
from passk_fast.advantage.noise import flip_negatives
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import RunConfig
from passk_fast.data.types import PackedBatch, Prompt, RolloutGroup, SampleRequest, Sequence
from passk_fast.errors import DivergedError, NoSignalError
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import InformativeShare, SampledBatch, draw
from passk_fast.run.clock import Clock
from passk_fast.run.engines import Engines
from passk_fast.run.metrics import Savings, logprob_bound, sampling_metrics, update_metrics
from passk_fast.seeding import seed_for
from passk_fast.tasks import PromptOrder, answer_of
from passk_fast.tasks.difficulty import Difficulty

_BESIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
"""Samples ahead while the main thread trains."""


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors."""

    step: int = 0
    """Batches trained on so far."""
    optimizer_step: int = 0
    """Optimizer steps tried so far: the position in the learning-rate schedule."""
    bad_steps: int = 0
    """Steps in a row whose gradient was not finite."""
    skipped: int = 0
    """All steps whose gradient was not finite."""
    order: dict[str, int] = field(default_factory=dict)
    """Position in the prompt order."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """What the schedule of the estimator remembers."""
    zero_advantage_steps: int = 0
    """Steps in a row without a group that has a gradient."""
    informative_share: dict[str, float] = field(default_factory=dict)
    """Running share of live groups, for refill."""
    difficulty: dict[str, Any] = field(default_factory=dict)
    """Memory of prompts, with data.curriculum."""


@dataclass
class Trainer:
    """The parts of a run and the step that uses them. All ranks call everything together."""

    config: RunConfig
    actor: Actor
    engines: Engines
    tokenizer: Any
    prompts: SequenceOf[Prompt]
    test_prompts: SequenceOf[Prompt]
    order: PromptOrder
    progress: Progress
    unchecked: int = 2
    """Steps whose rollout and trainer log-probs must still be compared: the first of this process,
    and the first after a weight sync."""
    schedule: Schedule = field(init=False)
    """Which estimator and which k each prompt gets."""
    informative_share: InformativeShare = field(init=False)
    difficulty: Difficulty = field(init=False)
    _synced: bool = field(init=False, default=False)
    _ahead: Future[SampledBatch] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.informative_share = InformativeShare(**self.progress.informative_share)
        self.difficulty = Difficulty(len(self.prompts))
        if self.progress.difficulty:
            self.difficulty.load_state_dict(self.progress.difficulty)
        self.schedule = Schedule(self.config.algorithm, self.config.seed)
        if self.config.rollout.early_stop:
            self.schedule.check_early_stop()
        if self.config.rollout.dynamic_sampling > 1:
            self.schedule.check_dynamic_sampling()
        self.schedule.load_state_dict(self.progress.schedule)

    def sync_weights(self) -> None:
        """Hand the actor's weights to the engines; verified as configured."""
        wanted = self.config.rollout.verify_weights
        verify = wanted == "always" or (wanted == "first" and not self._synced)
        self.engines.take_weights(self.actor, verify=verify)
        self._synced = True

    def step(
        self, clock: Clock, *, ahead: bool = False
    ) -> tuple[dict[str, Any], list[RolloutGroup]]:
        """Sample, score, update, sync. Returns the step's record and its rollouts.

        With `ahead` the next step's batch is sampled, from the weights as they are now, while this
        one is trained.
        """
        lag = int(self._ahead is not None)
        with clock.span("decode"):
            drawn = self._ahead.result() if self._ahead else self._draw(self.progress.step)
        self._ahead = None
        if lag:
            clock.add("overlap_sampling_s", drawn.stats.engine_s)
        for name, seconds in (("verify", drawn.stats.verify_s), ("idle", drawn.stats.idle_s)):
            if not lag:
                clock.add(name, seconds)
                clock.add("decode", -seconds)
        advantages_PN = self._advantages(drawn.groups, self.progress.step)
        self._count_dead(drawn.groups, advantages_PN)
        self._keep_draw(drawn)
        if ahead:
            self._ahead = _BESIDE.submit(self._draw, self.progress.step + 1)
        savings = Savings()
        results = self._update(
            drawn.groups[: drawn.end], advantages_PN[: drawn.end], clock, savings, lag
        )
        if self._ahead:
            with clock.span("decode"):  # what training did not hide
                self._ahead.result()
        with clock.span("sync"):
            self.engines.wake_up()
            self.sync_weights()
        record = {
            "step": self.progress.step + 1,
            **self._rollout_metrics(drawn.groups, advantages_PN),
            **sampling_metrics(drawn, advantages_PN),
            **update_metrics(results),
            "off_policy_steps": lag,
            "skipped_steps": self.progress.skipped,
            **savings.record(),
        }
        self.schedule.observe(record)
        self.progress.schedule = self.schedule.state_dict()
        self.progress.step += 1
        return record, drawn.groups

    def _draw(self, step: int) -> SampledBatch:
        """Sample prompts until the batch has its live groups (rollout.dynamic_sampling), or once."""
        config = self.config
        dead = self.schedule.dead(step)
        live_rows = tuple(bool(live) for live in ~dead)
        pass_over = config.data.curriculum

        def chance(prompt: int) -> float:
            return 1.0 - pass_over * (1.0 - self.difficulty.live_chance(prompt, live_rows))

        def collect(indices: list[int], first: int) -> tuple[list[RolloutGroup], CollectStats]:
            return self.engines.sample(
                SampleRequest(
                    prompts=[self.prompts[i] for i in indices],
                    num_rollouts=config.algorithm.num_rollouts,
                    seed=seed_for(config.seed, "sampling", step),
                    first_key=first,
                    zero_advantage_rows=dead if config.rollout.early_stop else None,
                )
            )

        return draw(
            lambda count: self.order.take(count, chance if pass_over else None),
            collect,
            lambda groups: (self._advantages(groups, step) != 0.0).any(axis=1),
            wanted=config.prompts_per_step,
            cap=int(config.prompts_per_step * config.rollout.dynamic_sampling),
            share=self.informative_share,
            multiple=self.engines.data_size,
        )

    def _keep_draw(self, drawn: SampledBatch) -> None:
        """Bring up to date what a checkpoint saves of sampling, before any sampling ahead."""
        state = self.progress
        state.order = self.order.state_dict()
        state.informative_share = asdict(self.informative_share)
        if self.config.data.curriculum:
            for index, group in zip(drawn.indices, drawn.groups, strict=True):
                tried = int(np.isfinite(group.rewards).sum())
                correct = int((group.rewards == 1.0).sum())
                self.difficulty.observe(index, correct, tried, state.step + 1)
            state.difficulty = self.difficulty.state_dict()

    def _count_dead(self, groups: list[RolloutGroup], advantages_PN: np.ndarray) -> None:
        """NoSignalError after algorithm.max_zero_advantage_steps steps without any gradient."""
        state, limit = self.progress, self.config.algorithm.max_zero_advantage_steps
        state.zero_advantage_steps = 0 if advantages_PN.any() else state.zero_advantage_steps + 1
        if not limit or state.zero_advantage_steps < limit:
            return
        reward = float(np.nanmean([group.rewards for group in groups]))
        advice = (
            "Responses are nearly all wrong: warm-start the model, take easier prompts, or look at "
            "the samples for answers that the verifier does not recognise."
            if reward < 0.5
            else "Responses are nearly all correct: take harder prompts, or a smaller algorithm.k."
        )
        raise NoSignalError(
            f"No group of {state.zero_advantage_steps} steps in a row had a gradient "
            f"(algorithm.max_zero_advantage_steps); the mean reward is {reward:.3g}. {advice}"
        )

    def _advantages(self, groups: list[RolloutGroup], step: int) -> np.ndarray:
        """What the schedule says at a step, float64 [P, N]; noise rewards only count here."""
        config = self.config
        rewards_PN = np.stack([group.rewards for group in groups])
        stopped_P = np.isnan(rewards_PN).any(axis=1)
        rewards_PN[stopped_P] = 0.0  # any reward will do: a stopped group has no gradient
        if config.algorithm.flip_negatives > 0:
            seed = seed_for(config.seed, "noise", step)
            rewards_PN = flip_negatives(rewards_PN, config.algorithm.flip_negatives, seed)
        advantages_PN = self.schedule.advantages(step, rewards_PN, sampled_entropy(groups))
        advantages_PN[stopped_P] = 0.0
        return advantages_PN

    def _update(
        self,
        groups: list[RolloutGroup],
        advantages_PN: np.ndarray,
        clock: Clock,
        savings: Savings,
        lag: int = 0,
    ) -> list[StepResult]:
        """One optimizer step a minibatch of prompts."""
        self.engines.sleep()
        count = self.config.algorithm.minibatches
        parts = []
        for m in range(count):
            part = slice(len(groups) * m // count, len(groups) * (m + 1) // count)
            with clock.span("pack"):
                everything = to_sequences(groups[part], advantages_PN[part])
                # The denominator counts what was sampled, so it is fixed before dropping any.
                denominator = self._denominator(everything)
                sequences = everything
                if self.config.skips_zero_advantage:
                    sequences = [s for s in everything if s.advantage != 0.0]
                batches = self.actor.pack(sequences)
                savings.count(everything, sequences, shared=self.config.share_prompts)
                savings.count_packed(batches)
            with clock.span("logprob"):
                # Log-probs of the sampling policy are needed once the weights have moved.
                prepared = self.actor.prepare(batches, old_logprobs=count > 1)
            parts.append((sequences, denominator, prepared))
        with clock.span("train"):
            return [self._optimize(*part, check=i == 0 and not lag) for i, part in enumerate(parts)]

    def _optimize(
        self,
        sequences: list[Sequence],
        denominator: float,
        batches: list[PackedBatch],
        *,
        check: bool,
    ) -> StepResult:
        """One optimizer step; `check`: the weights are those that sampled."""
        lr = learning_rate(self.config.optim, self.progress.optimizer_step, self.total_updates)
        lr *= self.schedule.lr_scale(self.progress.step)
        result = self.actor.policy_step(batches, denominator=denominator, lr=lr)
        result.sums["lr"] = lr
        result.sums["loss"] = result.sums["loss_sum"] / denominator
        if self.unchecked and check and result.sums["tokens"]:
            self._check_logprobs(result, sequences)
            self.unchecked -= 1
        self._count(result)
        return result

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.steps * self.config.algorithm.minibatches

    def _denominator(self, sequences: list[Sequence]) -> float:
        kind = self.config.algorithm.loss_denominator
        if kind == "sequences":
            return float(max(1, len(sequences)))
        counted = [s for s in sequences if kind == "response_tokens" or s.advantage != 0.0]
        return float(max(1, sum(s.response_length for s in counted)))

    def _count(self, result: StepResult) -> None:
        """Count optimizer steps, and those with gradients that are not finite."""
        state = self.progress
        state.optimizer_step += 1
        state.bad_steps = 0 if result.applied else state.bad_steps + 1
        state.skipped += not result.applied
        if state.bad_steps >= self.config.optim.max_bad_steps:
            raise DivergedError(
                f"{state.bad_steps} optimizer steps in a row had a NaN or inf gradient "
                f"(optim.max_bad_steps = {self.config.optim.max_bad_steps}). The last checkpoint "
                "is intact; lower optim.lr or look at the samples."
            )

    def _check_logprobs(self, result: StepResult, sequences: list[Sequence]) -> None:
        bound = logprob_bound(self.config, self.actor.mesh.device)
        worst = result.worst
        if worst is None or worst.gap <= bound:
            return
        token = self.tokenizer.decode([worst.token])
        raise DivergedError(
            f"Rollout and trainer disagree: |difference of log-probs| is {worst.gap:.3g}, above "
            f"{bound:.3g} (algorithm.max_logprob_gap). Worst token: {token!r} (id {worst.token}) "
            f"at position {worst.position} of sequence {worst.sequence}, rollout "
            f"{worst.rollout_logprob:.6f}, trainer {worst.trainer_logprob:.6f}, prompt of "
            f"{sequences[worst.sequence].prompt_length} tokens."
        )

    def _rollout_metrics(
        self, groups: list[RolloutGroup], advantages_PN: np.ndarray
    ) -> dict[str, Any]:
        algorithm, step = self.config.algorithm, self.progress.step
        dead = self.schedule.dead(step)
        return {
            **group_metrics(groups, advantages_PN, dead, algorithm.k, answer_of),
            "k": self.schedule.stages(step)[0].k,
            "phase": self.schedule.phase(step),
            "lr_scale": self.schedule.lr_scale(step),
        }

    def evaluate(self) -> dict[str, Any] | None:
        """Held-out pass@1 and pass@k with 95 % intervals; None without held-out prompts."""
        settings = self.config.eval
        prompts = self.test_prompts[: settings.num_prompts]
        if not prompts:
            return None
        self.engines.wake_up()
        seed = seed_for(self.config.seed, "evaluation", self.progress.step)
        groups, _ = self.engines.sample(
            SampleRequest(prompts=prompts, num_rollouts=settings.num_rollouts, seed=seed)
        )
        correct_P = np.array([(group.rewards == 1.0).sum() for group in groups])
        return evaluation(correct_P, settings.num_rollouts, self.config.algorithm.k)


def to_sequences(groups: list[RolloutGroup], advantages_PN: np.ndarray) -> list[Sequence]:
    """P groups and their advantages [P, N] -> P * N sequences, in order."""
    return [
        Sequence(
            token_ids=group.prompt_ids + rollout.token_ids,
            prompt_length=len(group.prompt_ids),
            rollout_logprobs=rollout.logprobs,
            advantage=float(advantage),
            routed_experts=rollout.routed_experts,
        )
        for group, advantages_N in zip(groups, advantages_PN, strict=True)
        for rollout, advantage in zip(group.rollouts, advantages_N, strict=True)
    ]
