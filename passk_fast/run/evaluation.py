"""Held-out prompts between steps of training."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from passk_fast.advantage.metrics import evaluation, real_evaluation
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, SampleRequest
from passk_fast.run.engines import Engines
from passk_fast.run.metrics import Record
from passk_fast.run.verifier_failures import VerifierFailures
from passk_fast.seeding import seed_for


class Evaluation:
    """Samples eval.num_rollouts responses to each of eval.num_prompts held-out prompts."""

    def __init__(
        self,
        config: RunConfig,
        engines: Engines,
        prompts: SequenceOf[Prompt],
        failures: VerifierFailures | None = None,
    ) -> None:
        """`prompts`: all that are held out; the first are taken. `failures`: those of the run."""
        limit = config.rollout.max_verifier_failures
        self._failures = failures or VerifierFailures(limit, prints=False)
        self._config, self._engines = config, engines
        self._prompts = prompts[: config.eval.num_prompts]

    def __call__(self, step: int) -> Record:
        """{"eval": pass@1 and pass@k with 95 % intervals}; empty without held-out prompts."""
        if not self._prompts:
            return {}
        num_rollouts = self._config.eval.num_rollouts
        seed = seed_for(self._config.seed, "evaluation", step)
        self._engines.wake_up()
        groups, stats = self._engines.sample(
            SampleRequest(prompts=self._prompts, num_rollouts=num_rollouts, seed=seed)
        )
        new = self._failures.check(stats, len(groups) * num_rollouts)
        rewards_PN = np.stack([group.rewards for group in groups])
        correct_P = (rewards_PN == 1.0).sum(axis=1)
        record: Record = {
            **evaluation(correct_P, num_rollouts, self._config.algorithm.k),
            **real_evaluation(rewards_PN, self._config.algorithm.k),
        }
        return {"eval": record | ({"verifier_errors": new} if new else {})}
