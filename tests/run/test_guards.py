"""What stops a run, and with which message."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from passk_fast.actor.logprob_gap import LogprobGap
from passk_fast.config import LogprobGapConfig
from passk_fast.errors import DivergedError, ExitCode, NoSignalError
from passk_fast.run.guards import Guards
from passk_fast.run.progress import Progress
from passk_fast.run.update import to_sequences
from tests.run.cases import Tokenizer, batch, config, gap_of, group, guards, result

pytestmark = pytest.mark.megatron
SEQUENCES = to_sequences([group([0, 1, 0, 1])], np.zeros((1, 4)))
GOOD, BAD = gap_of(0.0, 2e-5), gap_of(0.6, 0.6)


def test_non_finite_steps_in_a_row_stop_the_run() -> None:
    progress = Progress()
    guard = guards(progress)
    for applied in (False, True, False):  # a good step forgives
        guard.check_update(result(applied))
    assert progress.skipped_steps == 2
    told = "the gradient of x on rank 3 is NaN or inf. That is 2 optimizer steps in a row"
    with pytest.raises(DivergedError, match=told):
        guard.check_update(result(False))


@pytest.mark.parametrize(("reward", "advice"), [(0.0, "warm-start"), (1.0, "harder prompts")])
def test_a_task_without_signal_stops_with_advice(reward: float, advice: str) -> None:
    guard = guards(max_zero_advantage_steps=3)
    zero = batch([[reward] * 4])
    informative = batch([[reward] * 4], [[1.0, -1.0, 0.0, 0.0]])
    for sampled in (zero, zero, informative, zero, zero):
        guard.check_advantages(sampled)
    with pytest.raises(NoSignalError, match=advice) as caught:
        guard.check_advantages(zero)
    assert caught.value.exit_code == ExitCode.NO_SIGNAL


def test_steps_without_signal_go_on_from_a_checkpoint() -> None:
    with pytest.raises(NoSignalError, match="No group of 3 steps in a row"):
        guards(Progress(zero_advantage_steps=2), max_zero_advantage_steps=3).check_advantages(
            batch([[0.0] * 4])
        )


def test_disagreeing_logprobs_stop_the_run_and_name_the_token() -> None:
    guards().check_logprobs(gap_of(0.0, 5e-5), SEQUENCES)
    with pytest.raises(DivergedError) as caught:
        guards().check_logprobs(gap_of(0.0, 2e-4), SEQUENCES)
    for part in ("'t6' (id 6)", "position 10 of sequence 1", "0.0002", "0.0001", "logprob_gap.max"):
        assert part in str(caught.value)
    assert caught.value.exit_code == ExitCode.DIVERGED
    with pytest.raises(DivergedError):
        guards().check_logprobs(gap_of(math.nan), SEQUENCES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gap_is_met_at_whatever_step_it_comes(dtype: str) -> None:
    progress = Progress()
    guard = guards(progress, dtype=dtype)
    for _ in range(5):
        guard.check_logprobs(GOOD, SEQUENCES)
    assert progress.bad_gap_steps == 0
    if dtype == "bfloat16":  # three bad steps in a row
        guard.check_logprobs(BAD, SEQUENCES)
        guard.check_logprobs(BAD, SEQUENCES)
    with pytest.raises(DivergedError, match="end the run"):
        guard.check_logprobs(BAD, SEQUENCES)


def test_a_good_step_forgives_two_bad_ones(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    guard = guards(progress, dtype="bfloat16")
    for gap in (BAD, BAD, GOOD, BAD, BAD, GOOD):
        guard.check_logprobs(gap, SEQUENCES)
    assert progress.bad_gap_steps == 0
    warned = capsys.readouterr().err.splitlines()
    assert [line.split("Step ")[1] for line in warned] == [
        f"{n} in a row; 3 end the run." for n in (1, 2, 1, 2)
    ]


def test_bad_steps_go_on_from_a_checkpoint() -> None:
    with pytest.raises(DivergedError, match="step 3 in a row"):
        guards(Progress(bad_gap_steps=2), dtype="bfloat16").check_logprobs(BAD, SEQUENCES)


@pytest.mark.parametrize(
    ("gap", "bound"),
    [
        (gap_of(*[0.11] * 100), "logprob_gap.mean"),
        (gap_of(*[0.0] * 98, 0.51, 0.52), "logprob_gap.at_quantile"),
        (gap_of(*[0.0] * 99, math.inf), "logprob_gap.mean"),
    ],
    ids=["mean", "quantile", "not a number"],
)
def test_in_bfloat16_mean_and_quantile_decide(gap: LogprobGap, bound: str) -> None:
    guard = guards(dtype="bfloat16", logprob_gap=LogprobGapConfig(bad_steps=1))
    with pytest.raises(DivergedError, match=bound):
        guard.check_logprobs(gap, SEQUENCES)


def test_a_single_token_far_apart_is_only_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    guard = guards(dtype="bfloat16", logprob_gap=LogprobGapConfig(bad_steps=1))
    for far in (0.4, 0.7, 1.3, 1.5, 2.5):  # warned of when above max, and twice what was warned of
        guard.check_logprobs(gap_of(*[0.0] * 99, far), SEQUENCES)
    warned = capsys.readouterr().err.splitlines()
    assert [line.split(" is ")[1].split(",")[0] for line in warned] == ["0.7", "1.5"]
    assert all(line.startswith("warning: Rollout and trainer disagree") for line in warned)


@pytest.mark.parametrize(
    ("dtype", "options", "ends"),
    [
        ("float32", {"max": 2.0}, False),
        ("float32", {"ends_run": "mean", "bad_steps": 1}, True),
        ("float32", {"ends_run": "mean", "mean": 2.0, "at_quantile": 2.0}, False),
        ("float32", {"ends_run": "never"}, False),
        ("float32", {"bad_steps": 2}, False),
        ("bfloat16", {"ends_run": "max"}, True),
        ("bfloat16", {"ends_run": "max", "max": 2.0}, False),
        ("bfloat16", {"bad_steps": 1, "mean": 2.0}, True),
        ("bfloat16", {"bad_steps": 1, "mean": 2.0, "quantile": 0.2}, False),
    ],
)
def test_bounds_are_configuration(dtype: str, options: dict[str, Any], ends: bool) -> None:
    guard = guards(dtype=dtype, logprob_gap=LogprobGapConfig(**options))
    with pytest.raises(DivergedError) if ends else nullcontext():
        guard.check_logprobs(gap_of(0.0, 0.0, 1.0, 1.0), SEQUENCES)


def test_without_a_policy_nothing_is_compared() -> None:
    tokenizer: Any = Tokenizer()
    guard = Guards(config(), "cpu", tokenizer, Progress(), checks_logprobs=False)
    guard.check_logprobs(BAD, SEQUENCES)


def test_the_largest_gap_allowed_follows_the_dtype() -> None:
    bounds = LogprobGapConfig()
    assert bounds.largest("float32", "cpu") == 1e-4
    assert bounds.largest("float32", "cuda") == 1e-2
    assert bounds.largest("bfloat16", "cuda") == 0.5
