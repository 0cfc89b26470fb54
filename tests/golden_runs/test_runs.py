"""Ten steps of tiny models give the numbers they gave before, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden_runs.runs import RUNS, environment, file_of, run

pytestmark = pytest.mark.megatron


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sample] * ("2" in name)) for name in RUNS]
)
def test_a_golden_run_is_unchanged(name: str, tmp_path: Path) -> None:
    """Bit for bit where it was recorded. Elsewhere sums in another order differ by 1e-7 a step,
    which one other sampled token enlarges to other rewards: there the run is held to what holds
    anywhere."""
    golden = json.loads(file_of(name).read_text())
    got = run(name, tmp_path)
    if golden["environment"] == environment():
        assert got["records"] == golden["records"]
        assert got["weights"] == golden["weights"]
    has_something_to_say(got)
    assert got["weights"].keys() == golden["weights"].keys()
    for ours, theirs in zip(got["records"], golden["records"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["step"], ours["lr"]) == (theirs["step"], theirs["lr"])
        if ours["ppo_kl"] == 0.0:  # else a part of the step's batch is off-policy
            assert ours["logprob_gap_max"] <= 1e-4
        assert ours["trained_tokens"] <= ours["response_tokens"]


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_has_something_to_say(name: str) -> None:
    has_something_to_say(json.loads(file_of(name).read_text()))


def has_something_to_say(golden: dict[str, Any]) -> None:
    """A net that holds nothing would pass everything."""
    trained = golden["records"]
    assert len(trained) == 10
    assert sum(record["grad_norm"] > 0 for record in trained) >= 8
    assert len({record["reward"] for record in trained}) >= 4
    assert len(set(golden["weights"].values())) > 10
