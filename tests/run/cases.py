"""Groups, results and stand-ins that the tests of the loop's parts share."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from passk_fast.actor.actor import StepResult
from passk_fast.actor.logprob_gap import LogprobGap, measure_gap
from passk_fast.advantage.schedule import Schedule
from passk_fast.config import (
    AlgorithmConfig,
    LogprobGapConfig,
    ModelConfig,
    OptimConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
    ShapeConfig,
)
from passk_fast.data import packing
from passk_fast.data.types import (
    PackedBatch,
    Prompt,
    Rollout,
    RolloutGroup,
    SampleRequest,
    Sequence,
)
from passk_fast.errors import ExitCode
from passk_fast.kernels import TOKEN_METRICS
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import SampledBatch
from passk_fast.run.guards import Guards
from passk_fast.run.metrics import rollout_metrics
from passk_fast.run.progress import Progress
from passk_fast.run.sampling import group_advantages


class Mesh:
    """A place in the world."""

    device = "cpu"
    rank = 0


class Tokenizer:
    """Decodes a token to its number."""

    def decode(self, ids: list[int]) -> str:
        return f"t{ids[0]}"


def config(
    loss: PolicyLoss | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    logprob_gap: LogprobGapConfig | None = None,
    truncated: str = "judge",
    **algorithm: Any,
) -> RunConfig:
    """Groups of four, pass@2."""
    return RunConfig(
        device="cpu",
        rollout=RolloutConfig(truncated=truncated),  # type: ignore[arg-type]
        model=ModelConfig(dtype=dtype, shape=ShapeConfig(max_positions=2048)),
        logprob_gap=logprob_gap or LogprobGapConfig(),
        algorithm=AlgorithmConfig(num_rollouts=4, k=2, **algorithm),
        loss=loss or PolicyLoss(),
        optim=OptimConfig(max_bad_steps=2),
    )


def guards(progress: Progress | None = None, **options: Any) -> Guards:
    """Guards of a run on the CPU, with `config`'s options."""
    tokenizer: Any = Tokenizer()
    return Guards(config(**options), "cpu", tokenizer, progress or Progress(), prints=True)


def group(rewards: list[float], cut: SequenceOf[int] = ()) -> RolloutGroup:
    """Responses of 1, 2, 3, ... tokens; `cut` says which of them (from 0) were truncated."""
    rollouts = tuple(
        Rollout(token_ids=(7,) * n, logprobs=(-0.5,) * n, text="", finished=n - 1 not in cut)
        for n in range(1, len(rewards) + 1)
    )
    prompt = Prompt(id="0", text="x", answer="", task="exact")
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1, 2), rollouts=rollouts, rewards=np.array(rewards, dtype=float)
    )


def batch(rewards_PN: SequenceOf[SequenceOf[float]], advantages_PN: Any = None) -> SampledBatch:
    """All groups are trained; advantages are zero unless they are given."""
    groups = [group(list(rewards_N)) for rewards_N in rewards_PN]
    if advantages_PN is None:
        advantages_PN = np.zeros((len(groups), len(rewards_PN[0])))
    return SampledBatch(
        indices=list(range(len(groups))),
        groups=groups,
        advantages_PN=np.array(advantages_PN),
        end=len(groups),
        rounds=1,
        stats=CollectStats(),
    )


def advantages(groups: list[RolloutGroup], **algorithm: Any) -> np.ndarray:
    """Of the first step."""
    run = config(**algorithm)
    return group_advantages(groups, Schedule(run.algorithm, run.seed), run, 0)


def metrics(sampled: SampledBatch, **algorithm: Any) -> dict[str, object]:
    """Of the first step."""
    run = config(**algorithm)
    return rollout_metrics(sampled, Schedule(run.algorithm, run.seed), 0, run)


def result(applied: bool = True, norm: float = 1.0) -> StepResult:
    """Of one optimizer step."""
    return StepResult(
        sums={"tokens": 1.0},
        grad_norm=norm if applied else math.nan,
        applied=applied,
        gap=None,
        micro_batches=1,
        bad_gradient="" if applied else "the gradient of x on rank 3",
    )


def gap_of(*gaps: float) -> LogprobGap:
    """The log-prob gap of a step with a token for each number, all of sequence 1, at positions
    from 9, with ids from 5."""
    size = len(gaps)
    batch = packing.pack(
        [sequence((1,) * 9, 0), sequence((1,) * 9, size)], [0, 1], multiple=1, pad_id=0
    )
    own = batch.rollout_logprobs_T.clone()
    own[batch.mask_T] -= torch.tensor(gaps)
    found = LogprobGap.of(measure_gap(own, batch, batch.mask_T))
    assert found is not None
    return found


def sequence(prompt: tuple[int, ...], response: int, advantage: float = 1.0) -> Sequence:
    """A response of tokens 5, 6, 7, ... that were sampled with log-prob -1."""
    return Sequence(
        token_ids=prompt + tuple(range(5, 5 + response)),
        prompt_length=len(prompt),
        rollout_logprobs=(-1.0,) * response,
        advantage=advantage,
    )


class RecordingActor:
    """An actor that notes what it is given to train."""

    mesh = Mesh()

    def __init__(
        self,
        events: list[str] | None = None,
        gaps: SequenceOf[LogprobGap | None] = (),
        norms: Iterable[float] = (),
    ) -> None:
        """`gaps` and gradient `norms`: what its optimizer steps report, one after the other; then
        none, and 0.5."""
        self.gaps, self.norms = iter(gaps), iter(norms)
        self.packed: list[list[Sequence]] = []
        self.denominators: list[float] = []
        self.old_logprobs: list[bool] = []
        self.events = [] if events is None else events

    def pack(self, sequences: list[Sequence]) -> list[PackedBatch]:
        self.packed.append(sequences)
        return []

    def shares_prompts(self, sequences: list[Sequence]) -> bool:
        return False

    def prepare(self, batches: list[PackedBatch], *, old_logprobs: bool) -> list[PackedBatch]:
        self.old_logprobs.append(old_logprobs)
        return batches

    def policy_step(
        self, batches: list[PackedBatch], *, denominator: float, lr: float, largest_norm: float
    ) -> StepResult:
        self.denominators.append(denominator)
        norm = next(self.norms, 0.5)
        applied = norm <= largest_norm
        self.events.append("optimizer step" if applied else "skipped step")
        sums = {metric.name: 0.0 for metric in TOKEN_METRICS}
        sums["tokens"] = float(sum(s.response_length for s in self.packed[-1]))
        return StepResult(
            sums=sums,
            grad_norm=norm,
            applied=applied,
            gap=next(self.gaps, None),
            micro_batches=1,
        )


class FakeEngines:
    """Engines that answer at once, and note what they are asked in `events`.

    Prompt i has i correct responses, modulo N + 1; a response has as many tokens as its number.
    """

    data_size = 1
    stop_wanted = False

    def __init__(self, events: list[str] | None = None) -> None:
        self.events = [] if events is None else events
        self.requests: list[SampleRequest] = []
        self.threads: list[str] = []

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        self.requests.append(request)
        self.threads.append(threading.current_thread().name)
        num = request.num_rollouts
        groups = []
        for prompt in request.prompts:
            correct = int(prompt.id) % (num + 1)
            rewards = [1.0] * correct + [0.0] * (num - correct)
            groups.append(replace(group(rewards), prompt=prompt))
        self.events.append("sample")
        return groups, CollectStats(engine_s=0.25)

    def take_weights(self, actor: object, *, verify: bool) -> None:
        self.events.append("take weights, verified" if verify else "take weights")

    def sleep(self) -> None:
        self.events.append("sleep")

    def wake_up(self) -> None:
        self.events.append("wake up")

    def leave(self, code: ExitCode | None) -> None:
        self.events.append("leave")


def prompts(count: int) -> list[Prompt]:
    """Their ids are their numbers."""
    return [Prompt(id=str(i), text="x", answer="", task="exact") for i in range(count)]
