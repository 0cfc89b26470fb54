"""What a verifier's process cannot do: signal the trainer, and have all of the memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from passk_fast.config import RolloutConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.rollout.verdict import VerifierError
from passk_fast.rollout.verifier_pool import VerifierPool
from tests.rollout.test_verifier_pool import PROMPT, in_namespace


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_has_a_namespace_or_none_and_goes_on() -> None:
    program = (
        "import os; from passk_fast.rollout.verifier_process import enter_pid_namespace as enter\n"
        "os.setuid(65534); inside = enter(); child = os.fork()\n"
        "if not child: os._exit(os.getpid() == 1)\n"
        "print(inside == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def killer(prompt: Prompt, text: str) -> float:
    """Tries to end the trainer. Runs in a PID namespace alone: elsewhere it would succeed."""
    assert os.getpid() < 10, "not in a namespace"
    match text:
        case "parent":
            os.kill(os.getppid(), signal.SIGKILL)
        case "parent's group":
            os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
        case "own group":
            os.killpg(0, signal.SIGKILL)
        case "all":
            os.kill(-1, signal.SIGKILL)
        case _:
            os.kill(int(text), signal.SIGKILL)
    return 0.5


@pytest.mark.parametrize("text", ["parent", "parent's group", "own group", "all", "this process"])
def test_a_verifier_cannot_signal_the_trainer(text: str) -> None:
    if not in_namespace():
        pytest.skip("this system gives no PID namespaces")
    text = str(os.getpid()) if text == "this process" else text
    with VerifierPool(killer, processes=1, timeout_s=30.0) as made:
        for _ in range(2):  # the pool goes on, whatever it did
            with suppress(VerifierError):
                assert made.submit(PROMPT, [text]).result() == [0.5]


def holds(prompt: Prompt, text: str) -> float:
    return float(len(bytearray(int(text) * 2**20)) > 0)


def test_the_limit_of_memory_is_the_setting() -> None:
    settings = RolloutConfig(verify_memory_mib=2048)
    with VerifierPool.of(holds, settings) as made:
        assert made.submit(PROMPT, ["1536"]).result() == [1.0]
        with pytest.raises(VerifierError, match="MemoryError"):
            made.submit(PROMPT, ["3000"]).result()
    with pytest.raises(ConfigError, match=r"rollout\.verify_memory_mib must be in"):
        RolloutConfig(verify_memory_mib=-1)
