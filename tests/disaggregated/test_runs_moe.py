"""A mixture of experts in the disaggregated layout, as a user starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.test_end_to_end import metrics
from tests.run.test_end_to_end_moe import train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

AHEAD = """
    --steps 4 --rollout.max-off-policy-steps 1 --loss.tis-clip 2 --device cpu
    --checkpoint.every 4
""".split()
LAYOUTS = {
    "one-and-one": ("2 --rollout.dedicated-ranks 1", "1", "--algorithm.routing-replay measure"),
    "ep2-tp2": (
        "4 --rollout.dedicated-ranks 2",
        "2",
        "--parallel.expert 2 --rollout.tensor 2 --algorithm.routing-replay replay",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disaggregated_mixture_is_the_colocated_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Experts go to ranks that sample, and what sampling chose comes back from them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums over threads are rounded otherwise
    disaggregated, colocated, options = LAYOUTS[layout]
    for name, ranks in (("disaggregated", disaggregated), ("colocated", colocated)):
        train(tmp_path / name, *AHEAD, *options.split(), "--nproc", *ranks.split())
    records = metrics(tmp_path / "disaggregated")
    assert records == metrics(tmp_path / "colocated")
    # Sampled ahead or not: an evaluation comes after every second step.
    assert [record["off_policy_steps"] for record in records[1:]] == [0, 1, 0, 1]
    for fresh, late in ((records[1], records[2]), (records[3], records[4])):
        assert fresh["logprob_gap_max"] <= 1e-4 < late["logprob_gap_max"]  # syncs were complete
        assert fresh["routing_differs"] <= 1e-4 < 0.001 < late["routing_differs"]
