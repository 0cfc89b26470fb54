"""Verifiers that raise, hang, leave, flood, fork or give rubbish: one failure, and it goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from passk_fast.data.types import Prompt, Rollout
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.verifier_pool import VerifierError, VerifierPool, rewards_by

TIMEOUT_S = 2.0
PROMPT = Prompt(id="p7", text="?", answer="", task="test", columns={"odd": "\ud800"})


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Unshowable:
    def __repr__(self) -> str:
        return "x" * 10_000


def hostile(prompt: Prompt, text: str) -> float:
    """Does what the response says; a number is the reward."""
    match text:
        case "raise":
            raise KeyError("gold_label")
        case "unshowable":
            raise UnshowableError
        case "recursion":
            return hostile(prompt, text)
        case "exit":
            sys.exit(1)
        case "keyboard":
            raise KeyboardInterrupt
        case "generator exit":
            raise GeneratorExit
        case "leave":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(0.1)
        case "hang in C":
            sys.set_int_max_str_digits(0)
            return float(len(str(10**4_000_000)))
        case "flood":
            for _ in range(300):
                os.write(1, b"x" * 65536)
                print("y" * 65536, file=sys.stderr)
        case "fork":
            os.fork()  # both return from here
        case "fork and leave":
            if os.fork() == 0:
                time.sleep(600)  # holds the pipe open
            os._exit(3)
        case "thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
        case "input":
            return float(len(sys.stdin.read()))
    return float(text) if text.replace(".", "").isdigit() else 1.0


def rubbish(prompt: Prompt, text: str) -> object:
    values: dict[str, object] = {
        "nan": float("nan"),
        "none": None,
        "minus": -1.0,
        "two": 2,
        "text": "1",
        "lambda": lambda: 1,
        "unshowable": Unshowable(),
        "true": True,
        "numpy": np.float32(0.5),
    }
    return values[text]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(hostile, processes=1, timeout_s=TIMEOUT_S) as made:
        yield made


FAILURES = [
    ("raise", "KeyError", "gold_label"),
    ("unshowable", "UnshowableError", "its text cannot be shown"),
    ("recursion", "RecursionError", "maximum recursion depth"),
    ("exit", "SystemExit", "1"),
    ("keyboard", "KeyboardInterrupt", "KeyboardInterrupt"),
    ("generator exit", "GeneratorExit", "GeneratorExit"),
    ("leave", "ProcessEnded", "exit code 0"),
    ("killed", "ProcessEnded", "exit code -9"),
    ("fork and leave", "ProcessEnded", "exit code 3"),
    ("hang", "TimeoutError", "no verdict in 2 s"),
]


@pytest.mark.parametrize(("text", "kind", "words"), FAILURES)
def test_one_failure_and_the_next_is_judged(
    pool: VerifierPool, text: str, kind: str, words: str
) -> None:
    start = time.monotonic()
    with pytest.raises(VerifierError, match=words) as caught:
        pool.submit(PROMPT, [text]).result()
    assert caught.value.kind == kind
    if kind == "ProcessEnded":
        assert time.monotonic() - start < 60.0, "seen when it happens, not at a deadline"
    assert pool.submit(PROMPT, ["0.25"]).result() == [0.25]


@pytest.mark.slow
def test_a_hang_that_lets_no_signal_in(pool: VerifierPool) -> None:
    with pytest.raises(VerifierError, match="no verdict in 2 s"):
        pool.submit(PROMPT, ["hang in C"]).result()
    assert pool.submit(PROMPT, ["0.25"]).result() == [0.25]


@pytest.mark.parametrize("text", ["flood", "fork", "thread", "input"])
def test_what_does_no_harm(
    pool: VerifierPool, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    want = [0.0] if text == "input" else [1.0]
    for _ in range(2):  # a fork that returned would answer twice
        assert pool.submit(PROMPT, [text]).result() == want
    assert pool.submit(PROMPT, ["0.5", "0.75"]).result() == [0.5, 0.75]
    out = capfd.readouterr()
    assert "xxx" not in out.out
    assert "yyy" not in out.err


def test_where_it_was_raised_is_told(pool: VerifierPool) -> None:
    with pytest.raises(VerifierError) as caught:
        pool.submit(PROMPT, ["raise"]).result()
    assert caught.value.words().startswith("KeyError: 'gold_label' (test_verifier_pool.py:")


def test_what_is_no_reward() -> None:
    with VerifierPool(rubbish, processes=1, timeout_s=30.0) as made:
        for text in ("nan", "none", "minus", "two", "text", "lambda", "unshowable"):
            with pytest.raises(
                VerifierError, match=r"the verifier gave .*, not a reward"
            ) as caught:
                made.submit(PROMPT, [text]).result()
            assert len(str(caught.value)) < 300
        assert made.submit(PROMPT, ["true", "numpy"]).result() == [1.0, 0.5]


def test_no_process_outlives_the_pool() -> None:
    with VerifierPool(own_pid, processes=1, timeout_s=30.0) as made:
        (share,) = made.submit(PROMPT, [""]).result()
        pid = round(share * 2**32)
        os.kill(pid, 0)
        waiting = made.submit(PROMPT, ["sleep"])
        time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(VerifierError):
        waiting.result(timeout=5)


def own_pid(prompt: Prompt, text: str) -> float:
    if text:
        time.sleep(600)
    return os.getpid() / 2**32


@dataclass(frozen=True)
class Batches:
    """Rewards responses by their place among those that it is given."""

    def __call__(self, prompt: Prompt, text: str) -> float:
        raise AssertionError("responses are wanted together")

    def of_group(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[object]:
        if "short" in texts:
            return [0.0]
        return [len(texts) / 10 + i / 100 for i in range(len(texts))]

    def wants_groups(self, prompt: Prompt) -> bool:
        return prompt.id != "alone"

    def needs_process(self, prompt: Prompt) -> bool:
        return True

    def prepare(self) -> None:
        pass


class Slow(Batches):
    """Takes longer to import than a verdict may."""

    def prepare(self) -> None:
        time.sleep(1.0)


class Broken(Batches):
    """Cannot be imported."""

    def prepare(self) -> None:
        raise ImportError("no module named weights")


def _rollout(text: str) -> Rollout:
    return Rollout(token_ids=(1,), logprobs=(-1.0,), text=text, finished=True)


@pytest.mark.parametrize("in_process", [True, False])
def test_responses_of_a_group_are_judged_together_once_all_have_ended(in_process: bool) -> None:
    prompts = [PROMPT, PROMPT]
    with VerifierPool(Batches(), processes=2, timeout_s=30.0) as made:
        tracker = GroupTracker(prompts, 3, Batches(), pool=None if in_process else made)
        tracker.step([((0, 2), _rollout("c")), ((1, 0), _rollout("a"))])
        assert not tracker.step([((0, 0), _rollout("a"))]).waiting
        tracker.step([((0, 1), _rollout("b"))])
        tracker.step([])
        assert tracker.rewards[0].tolist() == [0.3, 0.31, 0.32]
        assert np.isnan(tracker.rewards[1]).all()


def test_a_batch_of_another_length_fails_as_a_whole() -> None:
    tracker = GroupTracker([PROMPT], 2, Batches())
    ended = [((0, n), _rollout("short")) for n in range(2)]
    actions = tracker.step(ended)
    assert actions.add == [(0, 2)], "one is sampled again, the other is wrong"
    assert "1 rewards for 2 responses" in tracker.failure_kinds["ValueError"]
    tracker.step([((0, 2), _rollout("fine"))])
    assert tracker.rewards[0].tolist() == [0.1, 0.0]


def test_an_interrupt_of_this_process_is_no_failure_of_a_verifier() -> None:
    with pytest.raises(KeyboardInterrupt):
        rewards_by(hostile, PROMPT, ["keyboard"])


def test_the_deadline_of_a_verdict_begins_after_the_import() -> None:
    with VerifierPool(Slow(), processes=1, timeout_s=0.5) as made:
        assert made.submit(PROMPT, ["a"]).result() == [0.1]


def test_an_import_that_fails_is_told_with_each_response() -> None:
    with VerifierPool(Broken(), processes=1, timeout_s=30.0) as made:
        for _ in range(2):
            with pytest.raises(VerifierError, match="ImportError: no module named weights"):
                made.submit(PROMPT, ["a"]).result()
