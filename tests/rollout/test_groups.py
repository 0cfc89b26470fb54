"""Decided groups are stopped, informative ones never; with verifier processes or without."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.data.types import Prompt, Rollout
from passk_fast.rollout.groups import MISSING, GroupTracker
from passk_fast.rollout.verdict import reward_of
from passk_fast.rollout.verifier_pool import VerifierPool


def prompt(i: int) -> Prompt:
    return Prompt(id=f"p{i}", text="", answer="", task="test")


def rollout(text: str) -> Rollout:
    return Rollout(token_ids=(1, 2), logprobs=(-1.0, -1.0), text=text, finished=True)


def verdict(prompt: Prompt, text: str) -> float:
    """The response says what it is worth; "hang" hangs and "raise" raises."""
    if text == "hang":
        time.sleep(60)
    if text == "raise":
        raise RuntimeError("no verdict")
    return float(text)


@given(st.data(), st.integers(2, 12))
def test_a_group_is_stopped_as_soon_as_its_advantages_must_be_zero(
    data: st.DataObject, n: int
) -> None:
    k = data.draw(st.integers(1, n - 1))
    zero_rows = zero_advantage_rows(table("passk", n, k))
    rewards = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    order = data.draw(st.permutations(range(n)))
    tracker = GroupTracker([prompt(0)], n, verdict, zero_advantage_rows=zero_rows)
    correct, stopped = 0, False
    for seen, i in enumerate(order, start=1):
        actions = tracker.step([((0, i), rollout(str(rewards[i])))])
        correct += rewards[i]
        left = n - seen
        # brute force: every way the rest can end
        decided = all(zero_rows[correct + more] for more in range(left + 1))
        stopped = bool(actions.abort)
        assert stopped == (decided and left > 0)
        if stopped:
            assert actions.abort == [(0, j) for j in sorted(set(range(n)) - set(order[:seen]))]
            assert int(np.isnan(tracker.rewards[0]).sum()) == left == tracker.aborted
            assert all(tracker.rollouts[0][j] is MISSING for _, j in actions.abort)
            break
    if not zero_rows[sum(rewards)]:
        assert not stopped
        assert tracker.rewards[0].tolist() == rewards


def test_a_group_with_a_fractional_reward_is_never_stopped() -> None:
    tracker = GroupTracker(
        [prompt(0)], 4, verdict, zero_advantage_rows=zero_advantage_rows(table("passk", 4, 3))
    )
    for i, text in enumerate(("0.5", "1", "1")):  # from two correct ones on every advantage is zero
        assert tracker.step([((0, i), rollout(text))]).abort == []


@pytest.mark.parametrize("judges", [True, False])
def test_a_truncated_response_is_judged_or_gets_zero_unseen(judges: bool) -> None:
    seen: list[str] = []

    def watched(prompt: Prompt, text: str) -> float:
        seen.append(text)
        return verdict(prompt, text)

    tracker = GroupTracker([prompt(0)], 3, watched, judge_truncated=judges)
    cut = [replace(rollout("1"), finished=False), replace(rollout("0.5"), finished=False)]
    tracker.step([((0, i), r) for i, r in enumerate([*cut, rollout("1")])])
    assert tracker.rewards[0].tolist() == ([1.0, 0.5, 1.0] if judges else [0.0, 0.0, 1.0])
    assert seen == (["1", "0.5", "1"] if judges else ["1"])


def test_a_truncated_response_can_decide_its_group() -> None:
    rows = zero_advantage_rows(table("passk", 4, 1))
    rows[:2] = True  # with at most one correct response nothing is learned
    tracker = GroupTracker([prompt(0)], 4, verdict, zero_advantage_rows=rows, judge_truncated=False)
    actions = [
        tracker.step([((0, i), replace(rollout("1"), finished=False))]).abort for i in range(3)
    ]
    assert actions == [[], [], [(0, 3)]]


def test_without_zero_advantage_rows_nothing_is_stopped() -> None:
    tracker = GroupTracker([prompt(0)], 3, verdict)
    for i in range(3):
        assert tracker.step([((0, i), rollout("1"))]).abort == []


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1, "1", None, [1.0], 1 + 0j])
def test_what_is_not_a_reward(value: object) -> None:
    with pytest.raises(ValueError, match="not a reward"):
        reward_of(value)


def test_processes_give_the_same_and_end_a_verifier_that_hangs() -> None:
    texts = ["1", "0", "raise", "0.5", "hang", "1"]
    with VerifierPool(verdict, processes=2, timeout_s=2.0) as pool:
        tracker = GroupTracker([prompt(0), prompt(1)], 3, verdict, pool=pool)
        ended = [((i // 3, i % 3), rollout(text)) for i, text in enumerate(texts)]
        actions = tracker.step(ended)
        assert actions.waiting
        assert actions.add == []
        actions = tracker.step([])
    assert actions.add == [(0, 3), (1, 3)]  # both are sampled anew
    assert not actions.waiting
    assert tracker.failures == 2
    assert tracker.failure_kinds["RuntimeError"].startswith("prompt 'p0': RuntimeError: no verdict")
    assert "no verdict in 2 s" in tracker.failure_kinds["TimeoutError"]
    assert tracker.rewards[0, :2].tolist() == [1.0, 0.0]
    assert tracker.rewards[1, [0, 2]].tolist() == [0.5, 1.0]
    assert np.isnan(tracker.rewards[[0, 1], [2, 1]]).all()
