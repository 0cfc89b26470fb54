"""Each kind of failure is shown once, and too many end the run with what went wrong."""

from __future__ import annotations

import pytest

from passk_fast.errors import DataError, ExitCode
from passk_fast.rollout.collect import CollectStats
from passk_fast.run.verifier_failures import VerifierFailures


def _stats(count: int, **kinds: str) -> CollectStats:
    return CollectStats(verifier_failures=count, failure_kinds=kinds)


def test_each_kind_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    failures = VerifierFailures(1.0, prints=True)
    assert failures.check(_stats(1, KeyError="prompt 'a': KeyError: x"), 8) == [
        "prompt 'a': KeyError: x"
    ]
    later = _stats(2, KeyError="prompt 'b': KeyError: y", TypeError="prompt 'c': TypeError: z")
    assert failures.check(later, 8) == ["prompt 'c': TypeError: z"]
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "verifier failed on prompt 'a': KeyError: x",
        "verifier failed on prompt 'c': TypeError: z",
    ]


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    VerifierFailures(1.0, prints=False).check(_stats(1, KeyError="k"), 8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "ends"), [(4, False), (5, True), (9, True)])
def test_more_than_the_limit_end_the_run(count: int, ends: bool) -> None:
    failures = VerifierFailures(0.5, prints=False)
    stats = _stats(count, KeyError="prompt 'a': KeyError: 'gold_label' (rewards.py:3)")
    if not ends:
        failures.check(stats, 8)
        return
    with pytest.raises(DataError, match=r"KeyError: 'gold_label' \(rewards\.py:3\)") as caught:
        failures.check(stats, 8)
    assert caught.value.exit_code is ExitCode.BAD_DATA
    assert "rollout.max_verifier_failures = 0.5" in str(caught.value)
    assert "warm-start" not in str(caught.value)


def test_a_limit_of_one_never_ends_it() -> None:
    """With its second tries a step may have more failures than responses."""
    VerifierFailures(1.0, prints=False).check(_stats(9, KeyError="k"), 8)
