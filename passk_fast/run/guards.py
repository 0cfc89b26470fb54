"""What stops a run: log-probs that disagree, bad gradients, steps of zero-advantage groups."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

from passk_fast.actor.actor import StepResult
from passk_fast.actor.logprob_gap import LogprobGap
from passk_fast.advantage.metrics import mean
from passk_fast.config import RunConfig
from passk_fast.data.types import Sequence
from passk_fast.errors import DivergedError, NoSignalError
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.gradient_norms import GradientNorms
from passk_fast.run.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Guards:
    """Checks of every step; all ranks see the same numbers and raise together."""

    def __init__(
        self,
        config: RunConfig,
        device: str,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress,
        *,
        prints: bool = False,
        checks_logprobs: bool = True,
    ) -> None:
        """`device` is "cpu" or "cuda"; `tokenizer` names the worst token; `progress` is counted
        in. `prints`: whether this rank warns the user. `checks_logprobs` of False: the sampler's
        log-probs are no policy's."""
        self._config, self._tokenizer, self._progress = config, tokenizer, progress
        self._prints, self._checks_logprobs = prints, checks_logprobs
        self._bounds, dtype = config.logprob_gap, config.model.dtype
        self._decides, self._allowed = self._bounds.decides(dtype), self._bounds.allowed(dtype)
        self._largest = self._bounds.largest(dtype, device)
        self._warned_of = 0.0
        self.norms = GradientNorms(config.optim.spike_factor)
        """Of the last optimizer steps."""

    def check_advantages(self, batch: SampledBatch) -> None:
        """NoSignalError after algorithm.max_zero_advantage_steps steps of zero-advantage groups."""
        progress, limit = self._progress, self._config.algorithm.max_zero_advantage_steps
        informative = batch.advantages_PN.any()
        progress.zero_advantage_steps = 0 if informative else progress.zero_advantage_steps + 1
        if not limit or progress.zero_advantage_steps < limit:
            return
        reward = mean([group.rewards for group in batch.groups])
        advice = (
            "Responses are nearly all wrong: warm-start the model, take easier prompts, or look at "
            "the samples for answers that the verifier does not recognise."
            if reward < 0.5
            else "Responses are nearly all correct: take harder prompts, or a smaller algorithm.k."
        )
        raise NoSignalError(
            f"No group of {progress.zero_advantage_steps} steps in a row had a gradient "
            f"(algorithm.max_zero_advantage_steps); the mean reward is {reward:.3g}. {advice}"
        )

    @property
    def largest_norm(self) -> float:
        """The gradient norm above which the next update is skipped (optim.skip_spikes)."""
        return self.norms.largest if self._config.optim.skip_spikes else math.inf

    def check_update(self, result: StepResult) -> None:
        """Count an optimizer step, warn of a skipped one and of a spike of the gradient norm.

        DivergedError at the last of optim.max_bad_steps in a row with gradients that are not
        finite.
        """
        progress, limit = self._progress, self._config.optim.max_bad_steps
        bad = result.bad_gradient
        progress.bad_steps = progress.bad_steps + 1 if bad else 0
        if not bad:
            self._check_norm(result)
            return
        progress.skipped_steps += 1
        told = f"Optimizer step {progress.optimizer_step}: {bad} is NaN or inf"
        if progress.bad_steps >= limit:
            raise DivergedError(
                f"{told}. That is {progress.bad_steps} optimizer steps in a row with a NaN or inf "
                f"gradient (optim.max_bad_steps = {limit}). The last checkpoint is intact; lower "
                "optim.lr or look at the samples."
            )
        self._warn(
            f"{told}; the step is skipped. It is number {progress.bad_steps} in a row; {limit} end "
            "the run."
        )

    def _check_norm(self, result: StepResult) -> None:
        norm, usual, optim = result.grad_norm, self.norms.median, self._config.optim
        if norm > self.norms.largest:
            self._progress.spikes += 1
            done = "taken" if result.applied else "skipped (optim.skip_spikes)"
            self._warn(
                f"Optimizer step {self._progress.optimizer_step}: the gradient norm is {norm:.3g}, "
                f"{norm / usual:.3g} times the median of the last steps, {usual:.3g}; above "
                f"{optim.spike_factor:g} times is a spike (optim.spike_factor). The step is {done}."
            )
        self.norms.observe(norm)

    def check_logprobs(self, gap: LogprobGap, sequences: SequenceOf[Sequence]) -> None:
        """Compare the log-probs of a step that was sampled with the trainer's weights.

        `gap` is over all its minibatches, whose sequences are `sequences`. DivergedError at the
        last of logprob_gap.bad_steps bad ones in a row; those before, and a largest gap that ends
        nothing, are warned of.
        """
        if not self._checks_logprobs:
            return
        progress = self._progress
        why = self._too_far(gap)
        progress.bad_gap_steps = progress.bad_gap_steps + 1 if why else 0
        told = f"Rollout and trainer disagree: {why or self._excess_of_largest(gap)}. "
        told += self._in_words(gap, sequences)
        if why and progress.bad_gap_steps >= self._allowed:
            raise DivergedError(
                f"{told} That is step {progress.bad_gap_steps} in a row, and "
                f"{self._allowed} end the run (logprob_gap.bad_steps). They compute the model "
                "differently, or the engine holds other weights: see 'Exactness checks' in "
                "docs/operations.md."
            )
        if why:
            self._warn(
                f"{told} Step {progress.bad_gap_steps} in a row; {self._allowed} end the run."
            )
        elif gap.largest > max(self._largest, 2 * self._warned_of):
            self._warned_of = gap.largest
            self._warn(f"{told} This alone does not end the run.")

    def _too_far(self, gap: LogprobGap) -> str:
        """Which bounds that decide are passed, in words; empty where none is."""
        bounds = self._bounds
        if self._decides == "max":
            return self._excess_of_largest(gap) if gap.largest > self._largest else ""
        if self._decides == "never":
            return ""
        quantile, passed = gap.quantile(bounds.quantile), []
        if gap.mean > bounds.mean:
            passed.append(
                f"the mean |difference of log-probs| is {gap.mean:.3g}, above {bounds.mean:.3g} "
                "(logprob_gap.mean)"
            )
        if quantile > bounds.at_quantile:
            passed.append(
                f"the {bounds.quantile:.4g} quantile of |difference of log-probs| is "
                f"{quantile:.3g}, above {bounds.at_quantile:.3g} (logprob_gap.at_quantile)"
            )
        return ", and ".join(passed)

    def _excess_of_largest(self, gap: LogprobGap) -> str:
        return (
            f"the largest |difference of log-probs| is {gap.largest:.3g}, above "
            f"{self._largest:.3g} (logprob_gap.max)"
        )

    def _in_words(self, gap: LogprobGap, sequences: SequenceOf[Sequence]) -> str:
        worst = gap.worst
        return (
            f"Worst token: {self._tokenizer.decode([worst.token])!r} (id {worst.token}) at "
            f"position {worst.position} of sequence {worst.sequence}, rollout "
            f"{worst.rollout_logprob:.6f}, trainer {worst.trainer_logprob:.6f}, prompt of "
            f"{sequences[worst.sequence].prompt_length} tokens; mean over tokens {gap.mean:.3g}."
        )

    def _warn(self, text: str) -> None:
        if self._prints:
            print(f"warning: {text}", file=sys.stderr, flush=True)
