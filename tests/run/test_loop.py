"""The step's arithmetic that needs no model: denominators, guards, records."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from passk_fast.actor.actor import StepResult, WorstToken
from passk_fast.advantage import advantages
from passk_fast.config import (
    AlgorithmConfig,
    ModelConfig,
    OptimConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    ShapeConfig,
)
from passk_fast.data.types import Prompt, Rollout, RolloutGroup, Sequence
from passk_fast.errors import ConfigError, DivergedError, ExitCode, NoSignalError
from passk_fast.run.clock import Clock
from passk_fast.run.loop import Progress, Trainer, to_sequences
from passk_fast.run.metrics import Savings, logprob_bound

pytestmark = pytest.mark.megatron


DEFAULT_LOSS = PolicyLoss()


class Mesh:
    """A place in the world."""

    device = "cpu"


class Actor:
    """Only its mesh is asked for here."""

    mesh = Mesh()


class Tokenizer:
    """Decodes a token to its number."""

    def decode(self, ids: list[int]) -> str:
        return f"t{ids[0]}"


def trainer(
    progress: Progress | None = None,
    loss: PolicyLoss = DEFAULT_LOSS,
    **algorithm: Any,
) -> Trainer:
    """A trainer whose parts are absent: the functions under test use none of them."""
    parts: dict[str, Any] = dict.fromkeys(("engines", "order"), None)
    config = RunConfig(
        model=ModelConfig(shape=ShapeConfig(max_positions=2048)),
        algorithm=AlgorithmConfig(num_rollouts=4, k=2, **algorithm),
        loss=loss,
        optim=OptimConfig(max_bad_steps=2),
    )
    return Trainer(
        config=config,
        actor=Actor(),  # type: ignore[arg-type]
        tokenizer=Tokenizer(),
        prompts=[],
        test_prompts=[],
        progress=progress or Progress(),
        **parts,
    )


def group(rewards: list[float]) -> RolloutGroup:
    """Responses of 1, 2, 3, ... tokens."""
    rollouts = tuple(
        Rollout(token_ids=(7,) * n, logprobs=(-0.5,) * n, text="", finished=True)
        for n in range(1, len(rewards) + 1)
    )
    prompt = Prompt(id="0", text="x", answer="", task="exact")
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1, 2), rollouts=rollouts, rewards=np.array(rewards, dtype=float)
    )


def step(applied: bool, gap: float = 0.0) -> StepResult:
    """The result of one optimizer step."""
    worst = WorstToken(
        gap=gap, sequence=1, position=9, token=5, rollout_logprob=-1.0, trainer_logprob=-1.0 - gap
    )
    return StepResult(sums={}, grad_norm=1.0, applied=applied, worst=worst, micro_batches=1)


@pytest.mark.parametrize(
    ("kind", "want"), [("response_tokens", 10.0), ("informative_tokens", 7.0), ("sequences", 4.0)]
)
def test_denominators(kind: str, want: float) -> None:
    sequences = to_sequences([group([0, 1, 0, 1])], np.array([[0.0, 0.0, 1.0, -2.0]]))
    assert [s.token_ids[:2] for s in sequences] == [(1, 2)] * 4
    assert [s.response_length for s in sequences] == [1, 2, 3, 4]
    assert trainer(loss_denominator=kind)._denominator(sequences) == want


class Recorder:
    """An actor that notes what it is given to train."""

    mesh = Mesh()

    def __init__(self) -> None:
        self.packed: list[list[Sequence]] = []
        self.denominators: list[float] = []

    def pack(self, sequences: list[Sequence]) -> list[Any]:
        self.packed.append(sequences)
        return []

    def prepare(self, batches: list[Sequence], *, old_logprobs: bool) -> list[Sequence]:
        return batches

    def policy_step(self, batches: Any, *, denominator: float, lr: float) -> StepResult:
        self.denominators.append(denominator)
        return StepResult(
            sums={"loss_sum": 0.0, "tokens": 0.0},
            grad_norm=0.0,
            applied=True,
            worst=None,
            micro_batches=1,
        )


class Engine:
    """Sleeps when told to."""

    def sleep(self) -> None:
        pass


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
    run = trainer(**options)
    run.actor = Recorder()  # type: ignore[assignment]
    run.engines = Engine()  # type: ignore[assignment]
    groups = [group([1, 0, 0, 0]), group([0, 0, 0, 0])]
    run._update(groups, np.array([[1.0, -0.5, -0.5, 0.0], [0.0] * 4]), Clock(), Savings())
    assert [len(packed) for packed in run.actor.packed] == [trained]
    assert run.actor.denominators == [20.0]  # all response tokens, fixed before pruning
    assert run.unchecked == 2  # nothing was compared


def test_pruning_with_a_kl_term_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kl_coef.*skip_zero_advantage = 'auto'"):
        trainer(loss=PolicyLoss(kl_coef=0.1), skip_zero_advantage="on")


def test_non_finite_steps_in_a_row_stop_the_run() -> None:
    run = trainer()
    run._count(step(False))
    run._count(step(True))  # a good step forgives
    run._count(step(False))
    assert run.progress.skipped == 2
    with pytest.raises(DivergedError, match="2 optimizer steps in a row"):
        run._count(step(False))


@pytest.mark.parametrize(("reward", "advice"), [(0.0, "warm-start"), (1.0, "harder prompts")])
def test_a_task_without_signal_stops_with_advice(reward: float, advice: str) -> None:
    run = trainer(max_zero_advantage_steps=3)
    groups = [group([reward] * 4)]
    dead, live = np.zeros((1, 4)), np.array([[1.0, -1.0, 0.0, 0.0]])
    for row in (dead, dead, live, dead, dead):
        run._count_dead(groups, row)
    with pytest.raises(NoSignalError, match=advice) as caught:
        run._count_dead(groups, dead)
    assert caught.value.exit_code == ExitCode.NO_SIGNAL


def test_disagreeing_logprobs_stop_the_run_and_name_the_token() -> None:
    run = trainer()
    sequences = to_sequences([group([0, 1, 0, 1])], np.zeros((1, 4)))
    run._check_logprobs(step(True, gap=5e-5), sequences)
    with pytest.raises(DivergedError) as caught:
        run._check_logprobs(step(True, gap=2e-4), sequences)
    for part in ("'t5' (id 5)", "position 9 of sequence 1", "0.0002", "0.0001"):
        assert part in str(caught.value)
    with pytest.raises(DivergedError):
        run._check_logprobs(step(True, gap=float("inf")), sequences)


def test_the_bound_follows_the_dtype_and_can_be_set() -> None:
    run = trainer(max_logprob_gap=0.25)
    assert logprob_bound(run.config, "cpu") == 0.25
    assert logprob_bound(trainer().config, "cpu") == 1e-4
    assert logprob_bound(trainer().config, "cuda") == 1e-2


def test_metrics_of_stopped_groups_are_bounds() -> None:
    nan = math.nan
    rewards = np.array([[1, 1, 1, nan], [1, 0, 0, 0]])
    groups = [group(list(row)) for row in rewards]
    record = trainer()._rollout_metrics(groups, np.zeros_like(rewards))
    assert record["pass@1"] == 0.5
    assert record["pass@1_high"] == 0.625
    assert record["pass@k"] == record["pass@k_high"] == 0.75  # N = 4, k = 2: c >= 3 decides it
    assert record["censored_share"] == record["zero_advantage_share"] == 0.5
    assert record["reward"] == pytest.approx(4 / 7)
    assert record["correct_histogram"] == [0, 1, 0, 0, 0]
    assert record["censored_histogram"] == [0, 0, 0, 1, 0]


def test_stopped_groups_get_no_advantage_and_leave_the_others_alone() -> None:
    rewards = np.array([[1, 1, 1, math.nan], [1, 0, 0, 0], [0, 0, 1, 1]])
    run = trainer(loss_denominator="sequences")
    got = run._advantages([group(list(row)) for row in rewards], 0)
    assert not got[0].any()
    np.testing.assert_array_equal(got[1:], advantages("passk", rewards[1:], 2))


def test_a_checkpoint_keeps_the_schedule() -> None:
    plan = ScheduleConfig(kind="plateau", ks=(2, 1), patience=3)
    run = trainer(schedule=plan)
    for value in (0.5, 0.4, 0.4, 0.4):
        run.schedule.observe({"pass@k": value})
    state = json.loads(json.dumps(run.schedule.state_dict()))
    assert run.schedule.phase(4) == 1
    again = trainer(schedule=plan, progress=Progress(step=4, schedule=state))
    assert again.schedule.state_dict() == run.schedule.state_dict()
    assert again.schedule.stages(4)[0].k == 1


def test_noise_changes_advantages_and_not_the_record() -> None:
    groups = [group([1.0, 0.0, 0.0, 0.0]) for _ in range(50)]
    run = trainer(flip_negatives=0.5)
    noisy = run._advantages(groups, 0)
    assert (noisy != trainer()._advantages(groups, 0)).any()
    np.testing.assert_array_equal(noisy, run._advantages(groups, 0))  # seeded by the step
    record = run._rollout_metrics(groups, noisy)
    assert record["reward"] == record["pass@1"] == 0.25


def test_early_stop_is_refused_where_it_is_not_exact() -> None:
    def config(loss: PolicyLoss = DEFAULT_LOSS, **algorithm: Any) -> RunConfig:
        return RunConfig(
            model=ModelConfig(path="x"),
            rollout=RolloutConfig(early_stop=True),
            loss=loss,
            algorithm=AlgorithmConfig(**algorithm),
        )

    config(loss_denominator="informative_tokens")
    config(loss_denominator="sequences")
    with pytest.raises(ConfigError, match="would change the denominator"):
        config()
    with pytest.raises(ConfigError, match="kl_coef"):
        config(loss_denominator="sequences", loss=PolicyLoss(kl_coef=0.1))


def test_sampling_ahead_needs_the_importance_correction_and_an_awake_engine() -> None:
    def config(device: str = "cpu", sleep: bool = True, tis_clip: float = 0.0) -> RunConfig:
        return RunConfig(
            device=device,  # type: ignore[arg-type]
            model=ModelConfig(path="x"),
            rollout=RolloutConfig(max_off_policy_steps=1, sleep=sleep),
            loss=PolicyLoss(tis_clip=tis_clip),
        )

    config(tis_clip=2.0)
    config("cuda", sleep=False, tis_clip=2.0)
    with pytest.raises(ConfigError, match=r"loss\.tis_clip"):
        config()
    with pytest.raises(ConfigError, match=r"rollout.sleep = false"):
        config("cuda", tis_clip=2.0)


def test_rollout_metrics_count_dead_groups() -> None:
    rewards = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=float)
    groups = [group(list(row)) for row in rewards]
    record = trainer()._rollout_metrics(groups, np.zeros_like(rewards))
    assert record["zero_advantage_share"] == 0.75  # N = 4, k = 2: signal at 1 <= c <= 2 only
    assert record["pass@1"] == 0.5
    assert record["pass@k"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)
