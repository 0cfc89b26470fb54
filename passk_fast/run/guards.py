"""What stops a run: log-probs that disagree, bad gradients, steps of zero-advantage groups."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

from passk_fast.actor.actor import StepResult, WorstToken
from passk_fast.advantage.metrics import mean
from passk_fast.config import RunConfig
from passk_fast.data.types import Sequence
from passk_fast.errors import DivergedError, NoSignalError
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKED_STEPS = 2
"""On-policy steps of a process whose log-probs are compared: the first, and the first after a
weight sync."""
_LOGPROB_GAP = {("float32", "cpu"): 1e-4, ("float32", "cuda"): 1e-2}
_LOGPROB_GAP_BF16 = 0.5


class Guards:
    """Checks of every step; all ranks see the same numbers and raise together."""

    def __init__(
        self,
        config: RunConfig,
        device: str,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress,
        *,
        checked_steps: int = CHECKED_STEPS,
    ) -> None:
        """`device` is "cpu" or "cuda"; `tokenizer` names the worst token; `progress` is counted
        in. `checked_steps` of 0: the log-probs are no policy's."""
        self._config, self._tokenizer, self._progress = config, tokenizer, progress
        self._bound = logprob_bound(config, device)
        self._unchecked = checked_steps

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

    def check_update(
        self, result: StepResult, sequences: SequenceOf[Sequence], *, on_policy: bool
    ) -> None:
        """Count an optimizer step; DivergedError where it shows that something is wrong.

        That is a rollout log-prob of `sequences` that the trainer does not share, looked for in
        the first `checked_steps` steps that are on-policy (the weights are those that sampled) and
        train tokens, or the last of optim.max_bad_steps steps with gradients that are not finite.
        """
        if self._unchecked and on_policy and result.sums["tokens"]:
            self._check_logprobs(result.worst, sequences)
            self._unchecked -= 1
        self._count_gradient(result.applied)

    def _check_logprobs(self, worst: WorstToken | None, sequences: SequenceOf[Sequence]) -> None:
        if worst is None or worst.gap <= self._bound:
            return
        token = self._tokenizer.decode([worst.token])
        raise DivergedError(
            f"Rollout and trainer disagree: |difference of log-probs| is {worst.gap:.3g}, above "
            f"{self._bound:.3g} (algorithm.max_logprob_gap). Worst token: {token!r} (id "
            f"{worst.token}) at position {worst.position} of sequence {worst.sequence}, rollout "
            f"{worst.rollout_logprob:.6f}, trainer {worst.trainer_logprob:.6f}, prompt of "
            f"{sequences[worst.sequence].prompt_length} tokens."
        )

    def _count_gradient(self, is_finite: bool) -> None:
        progress, limit = self._progress, self._config.optim.max_bad_steps
        progress.bad_steps = 0 if is_finite else progress.bad_steps + 1
        progress.skipped_steps += not is_finite
        if progress.bad_steps >= limit:
            raise DivergedError(
                f"{progress.bad_steps} optimizer steps in a row had a NaN or inf gradient "
                f"(optim.max_bad_steps = {limit}). The last checkpoint is intact; lower optim.lr "
                "or look at the samples."
            )


def logprob_bound(config: RunConfig, device: str) -> float:
    """The largest |rollout - trainer log-prob| in nats that the guard lets pass."""
    if config.algorithm.max_logprob_gap > 0:
        return config.algorithm.max_logprob_gap
    return _LOGPROB_GAP.get((config.model.dtype, device), _LOGPROB_GAP_BF16)
