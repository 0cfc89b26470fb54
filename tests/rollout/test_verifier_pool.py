"""Verifiers that raise, hang, leave, flood, fork or give rubbish: one failure, and it goes on."""

from __future__ import annotations

import functools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch

from passk_fast.data.types import Prompt, Rollout
from passk_fast.rollout import verifier_process
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.verdict import VerifierError, Verify, rewards_by
from passk_fast.rollout.verifier_pool import VerifierPool

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
        case "leave a process":
            subprocess.Popen(["sleep", "600"], start_new_session=in_namespace())
        case "hang and ignore":
            for number in {*signal.Signals} - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            time.sleep(600)
        case "hold":
            return float(len(bytearray(1536 * 2**20)) > 0)
        case "print":
            print("z" * 200 * 2**20)
        case "a huge error":
            raise type("E" * 10**6, (Exception,), {})("x" * 200 * 2**20)
        case "half an answer":
            for number in range(3, 64):
                with suppress(OSError):
                    os.write(number, b"\0\1")
            time.sleep(600)
        case "a false count":
            for number in range(3, 64):
                with suppress(OSError):
                    os.write(number, b"\0\xff\xff\xff\xff" + bytes(100))
            time.sleep(600)
        case "a false reward":
            for number in range(3, 64):
                with suppress(OSError):
                    os.write(number, struct.pack("<BId", 0, 1, 7.0))
            time.sleep(600)
        case "thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
        case "input":
            return float(len(sys.stdin.read()))
    return float(text) if text.replace(".", "").isdigit() else 1.0


class Reduced:
    """Unpickled, it would end the process."""

    def __reduce__(self) -> tuple[object, tuple[int, int]]:
        return os.kill, (os.getpid(), signal.SIGKILL)


def rubbish(prompt: Prompt, text: str) -> object:
    values: dict[str, object] = {
        "nan": float("nan"),
        "none": None,
        "minus": -1.0,
        "two": 2,
        "text": "1",
        "lambda": lambda: 1,
        "unshowable": Unshowable(),
        "bytes": bytes(200 * 2**20),
        "tensor": torch.ones(1),
        "exception": UnshowableError(threading.Lock()),
        "reduce": Reduced(),
        "true": True,
        "numpy": np.float32(0.5),
    }
    return values[text]


@functools.cache
def in_namespace() -> bool:
    """Whether verifiers have a PID namespace here; asked in a process of its own."""
    ask = "from passk_fast.rollout.verifier_process import enter_pid_namespace as enter\n"
    return subprocess.run([sys.executable, "-c", ask + "exit(not enter())"]).returncode == 0


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
    ("hang and ignore", "TimeoutError", "no verdict in 2 s"),
    ("half an answer", "TimeoutError", "no verdict in 2 s"),
    ("a false count", "BadAnswer", "wrote into its process's answers"),
    ("a false reward", "BadAnswer", "wrote into its process's answers"),
    ("hold", "MemoryError", "MemoryError"),
    ("a huge error", "EEEE", "xxxx"),
]


@pytest.mark.parametrize(("text", "kind", "words"), FAILURES)
def test_one_failure_and_the_next_is_judged(
    pool: VerifierPool, text: str, kind: str, words: str
) -> None:
    start = time.monotonic()
    with pytest.raises(VerifierError, match=words) as caught:
        pool.submit(PROMPT, [text]).result()
    assert caught.value.kind[: len(kind)] == kind
    assert len(caught.value.words()) < 2000
    if kind == "ProcessEnded":
        assert time.monotonic() - start < 60.0, "seen when it happens, not at a deadline"
    assert pool.submit(PROMPT, ["0.25"]).result() == [0.25]


@pytest.mark.slow
def test_a_hang_that_lets_no_signal_in(pool: VerifierPool) -> None:
    with pytest.raises(VerifierError, match="no verdict in 2 s"):
        pool.submit(PROMPT, ["hang in C"]).result()
    assert pool.submit(PROMPT, ["0.25"]).result() == [0.25]


@pytest.mark.parametrize("text", ["flood", "print", "fork", "thread", "input"])
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
        for text in (
            "nan",
            "none",
            "minus",
            "two",
            "text",
            "lambda",
            "unshowable",
            "bytes",
            "tensor",
            "exception",
            "reduce",
        ):
            with pytest.raises(
                VerifierError, match=r"the verifier gave .*, not a reward"
            ) as caught:
                made.submit(PROMPT, [text]).result()
            assert len(str(caught.value)) < 300
        assert made.submit(PROMPT, ["true", "numpy"]).result() == [1.0, 0.5]


def _plain() -> Verify:
    """Called in the verifier's process, before it takes up its work."""
    verifier_process.enter_pid_namespace = lambda: False
    return hostile


class Plain:
    """`hostile`, in a process without a namespace."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _plain, ()

    def __call__(self, prompt: Prompt, text: str) -> float:
        raise AssertionError("it is judged in the process")


@pytest.fixture(scope="module")
def plain() -> Iterator[VerifierPool]:
    with VerifierPool(Plain(), processes=1, timeout_s=TIMEOUT_S) as made:
        yield made


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [entry for entry in FAILURES if entry[0] in ("raise", "hang", "killed", "fork and leave")],
)
def test_failures_where_there_is_no_namespace(
    plain: VerifierPool, text: str, kind: str, words: str
) -> None:
    test_one_failure_and_the_next_is_judged(plain, text, kind, words)


def test_no_process_outlives_the_pool() -> None:
    before = set(psutil.Process().children(recursive=True))
    with VerifierPool(hostile, processes=1, timeout_s=30.0) as made:
        assert made.submit(PROMPT, ["leave a process"]).result() == [1.0]
        started = set(psutil.Process().children(recursive=True)) - before
        assert started
        waiting = made.submit(PROMPT, ["hang"])
        time.sleep(0.2)
    left = psutil.wait_procs(started, timeout=10)[1]
    assert [process for process in left if "resource_tracker" not in str(process.cmdline())] == []
    with pytest.raises(VerifierError):
        waiting.result(timeout=5)


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
