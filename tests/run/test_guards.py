"""What stops a run, and with which message."""

from __future__ import annotations

import numpy as np
import pytest

from passk_fast.errors import DivergedError, ExitCode, NoSignalError
from passk_fast.run.guards import logprob_bound
from passk_fast.run.progress import Progress
from passk_fast.run.update import to_sequences
from tests.run.cases import batch, config, group, guards, result

pytestmark = pytest.mark.megatron
SEQUENCES = to_sequences([group([0, 1, 0, 1])], np.zeros((1, 4)))


def test_non_finite_steps_in_a_row_stop_the_run() -> None:
    progress = Progress()
    guard = guards(progress)
    for applied in (False, True, False):  # a good step forgives
        guard.check_update(result(applied), SEQUENCES, on_policy=True)
    assert progress.skipped_steps == 2
    with pytest.raises(DivergedError, match="2 optimizer steps in a row"):
        guard.check_update(result(False), SEQUENCES, on_policy=True)


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
    guards().check_update(result(gap=5e-5), SEQUENCES, on_policy=True)
    with pytest.raises(DivergedError) as caught:
        guards().check_update(result(gap=2e-4), SEQUENCES, on_policy=True)
    for part in ("'t5' (id 5)", "position 9 of sequence 1", "0.0002", "0.0001"):
        assert part in str(caught.value)
    with pytest.raises(DivergedError):
        guards().check_update(result(gap=float("inf")), SEQUENCES, on_policy=True)


def test_logprobs_are_compared_in_the_first_two_steps_that_allow_it() -> None:
    guard, differs = guards(), result(gap=1.0)
    guard.check_update(differs, SEQUENCES, on_policy=False)  # the weights have moved
    guard.check_update(result(gap=1.0, tokens=0.0), SEQUENCES, on_policy=True)  # nothing trained
    for _ in range(2):
        guard.check_update(result(), SEQUENCES, on_policy=True)
    guard.check_update(differs, SEQUENCES, on_policy=True)  # no longer compared


def test_the_bound_follows_the_dtype_and_can_be_set() -> None:
    assert logprob_bound(config(max_logprob_gap=0.25), "cpu") == 0.25
    assert logprob_bound(config(), "cpu") == 1e-4
    assert logprob_bound(config(), "cuda") == 1e-2
