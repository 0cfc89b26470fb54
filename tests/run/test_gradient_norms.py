"""What a spike of the gradient norm is, how it is told, and what a resumed run remembers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from passk_fast.config import OptimConfig
from passk_fast.run.gradient_norms import FEWEST, WINDOW, GradientNorms
from passk_fast.run.guards import Guards
from passk_fast.run.progress import Progress
from tests.run.cases import Tokenizer, config, result

pytestmark = pytest.mark.megatron


def norms_of(*values: float, factor: float = 3.0) -> GradientNorms:
    norms = GradientNorms(factor)
    for value in values:
        norms.observe(value)
    return norms


def test_a_spike_is_above_a_multiple_of_the_median() -> None:
    assert norms_of(*[0.5] * (FEWEST - 1)).largest == math.inf
    assert norms_of(*[0.5] * FEWEST).largest == 1.5
    assert norms_of(*[0.5] * FEWEST, 1e9, 1e9).largest == 1.5  # a mean would be far off
    assert norms_of(*[0.5] * FEWEST, factor=0.0).largest == math.inf
    assert norms_of(*[0.0] * FEWEST).largest == math.inf  # of nothing there is no multiple


def test_what_is_not_finite_does_not_count() -> None:
    norms = norms_of(math.nan, *[0.5] * (FEWEST - 1), math.inf)
    assert norms.largest == math.inf
    assert len(norms.state_dict()) == FEWEST - 1


def test_a_lasting_change_is_no_spike_after_half_a_window() -> None:
    norms = norms_of(*[1.0] * WINDOW)
    spikes = 0
    for _ in range(WINDOW):
        spikes += norms.largest < 10.0
        norms.observe(10.0)
    assert spikes == WINDOW // 2
    assert norms.state_dict() == [10.0] * WINDOW


def test_the_last_norms_go_through_json_to_the_last_bit() -> None:
    norms = norms_of(*[0.1 * i / 7 for i in range(WINDOW + 5)])
    again = GradientNorms(3.0)
    again.load_state_dict(json.loads(json.dumps(norms.state_dict())))
    assert again.state_dict() == norms.state_dict()
    assert again.largest == norms.largest
    again.observe(5.0)
    assert len(again.state_dict()) == WINDOW


def guard_with(progress: Progress, optim: OptimConfig) -> Guards:
    """Guards that have seen enough norms of 0.5."""
    tokenizer: object = Tokenizer()
    run = replace(config(), optim=optim)
    guard = Guards(run, "cpu", tokenizer, progress, prints=True)  # type: ignore[arg-type]
    for _ in range(FEWEST):
        guard.check_update(result(norm=0.5))
    return guard


def test_a_spike_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(optimizer_step=21)
    guard = guard_with(progress, OptimConfig(spike_factor=4.0))
    assert guard.largest_norm == math.inf  # it is only told
    guard.check_update(result(norm=1.9))
    assert capsys.readouterr().err == ""
    guard.check_update(result(norm=2.5))
    assert progress.spikes == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        "warning: Optimizer step 21: the gradient norm is 2.5, 5 times the median of the last "
        "steps, 0.5; above 4 times is a spike (optim.spike_factor). The step is taken."
    )


def test_a_skipped_spike_is_no_bad_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    guard = guard_with(progress, OptimConfig(spike_factor=4.0, skip_spikes=True))
    assert guard.largest_norm == 2.0
    for _ in range(5):
        guard.check_update(replace(result(norm=2.5), applied=False))
    assert (progress.spikes, progress.bad_steps, progress.skipped_steps) == (5, 0, 0)
    assert capsys.readouterr().err.count("The step is skipped (optim.skip_spikes).") == 5


def test_a_gradient_that_is_not_finite_is_told_with_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(optimizer_step=7)
    guard = guard_with(progress, OptimConfig(max_bad_steps=3))
    guard.check_update(result(applied=False))
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        "warning: Optimizer step 7: the gradient of x on rank 3 is NaN or inf; the step is "
        "skipped. It is number 1 in a row; 3 end the run."
    )
    assert (progress.spikes, progress.skipped_steps) == (0, 1)
