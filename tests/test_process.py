"""How a rank reports an error, and the code that it leaves with."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
import warnings

import psutil
import pytest

from passk_fast.errors import ConfigError, DiskError, ExitCode, LostRankError
from passk_fast.process import PARENT, in_a_line, quiet, report_error


def test_a_users_error_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(ConfigError("optim.lr must be positive, got 0."), 0) == ExitCode.BAD_CONFIG
    assert capsys.readouterr().err == "error: optim.lr must be positive, got 0.\n"


def test_only_rank_0_prints_what_all_ranks_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(DiskError("the disk is full"), 3) == ExitCode.DISK
    assert capsys.readouterr().err == ""


def test_a_lost_rank_is_reported_by_whoever_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(LostRankError("rank 1 is gone"), 3) == ExitCode.LOST_RANK
    assert capsys.readouterr().err == "error: rank 1 is gone\n"


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Read timeout",
        "Connection closed by peer [10.0.0.1]:4242",
        "NCCL communicator was aborted",
        "Broken pipe",
    ],
)
def test_collectives_that_fail_mean_a_lost_rank(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(RuntimeError(f"{text}\nException raised from ..."), 1) == 17
    printed = capsys.readouterr().err
    assert printed.startswith("error: A rank was lost or a collective timed out: ")
    assert "Exception raised from" not in printed


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("NCCL"), KeyError(3)])
def test_faults_of_ours_are_printed_whole_on_every_rank(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error, 1) == ExitCode.CRASHED
    printed = capsys.readouterr().err
    assert printed.startswith(type(error).__name__)
    assert str(error) in printed


def test_quiet_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    levels = {name: logging.getLogger(name).level for name in ("", "megatron", "transformers")}
    try:
        with warnings.catch_warnings(record=True) as seen:
            quiet()
            warnings.warn("a library's advice", UserWarning, stacklevel=1)
        assert not seen
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
        assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"
        assert logging.getLogger("megatron.core").getEffectiveLevel() == logging.ERROR
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        os.environ.pop("TRANSFORMERS_NO_ADVISORY_WARNINGS", None)


def run_program(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


PROGRAM = """
import threading, time
from passk_fast.errors import ExitCode, NoSignalError
from passk_fast.process import run_rank
threading.Thread(target=time.sleep, args=(300,)).start()
def blocked():
    # as in a collective: in C, where signals wake nobody
    import ctypes
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
def work():
    print("worked")
    {work}
run_rank(work, lambda code, said: print("leaves with", int(code), said))
"""


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("return ExitCode.PREEMPTED", ExitCode.PREEMPTED, ""),
        ("raise NoSignalError('all wrong')", ExitCode.NO_SIGNAL, "all wrong"),
        ("import os; os.kill(os.getpid(), 2); blocked()", ExitCode.PREEMPTED, ""),
        ("import os; os.kill(os.getpid(), 15); blocked()", ExitCode.PREEMPTED, ""),
        ("raise ValueError('x')", ExitCode.CRASHED, "ValueError: x (<string>:15)"),
    ],
)
def test_a_rank_leaves_with_a_code_and_waits_for_no_thread(
    work: str, code: ExitCode, said: str
) -> None:
    done = run_program(PROGRAM.format(work=work))
    assert done.returncode == code
    assert done.stdout == f"worked\nleaves with {int(code)} {said}\n"


PARENT_OF_ALL = """
import os, signal, subprocess, sys, time
from passk_fast.process import PARENT
os.environ[PARENT] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", CHILD])
child.wait()
"""
CHILD_THAT_FORKS = r"""
import os, time
from passk_fast.process import die_with_parent
die_with_parent()
if os.fork() == 0:
    os.write(1, f"fork {os.getpid()}\n".encode())
    time.sleep(60)
os.write(1, f"child {os.getpid()}\n".encode())
time.sleep(60)
"""


def test_a_killed_parent_takes_its_children_and_their_forks_along() -> None:
    code = PARENT_OF_ALL.replace("CHILD]", f"{CHILD_THAT_FORKS!r}]")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        found = dict(top.stdout.readline().split() for _ in range(2))
        assert found.keys() == {"child", "fork"}
        top.kill()
        top.wait()
    deadline = time.monotonic() + 20
    while any(_lives(int(pid)) for pid in found.values()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_who_comes_after_its_parents_end_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from passk_fast.process import die_with_parent; die_with_parent(); print('stayed')"
    environment = {**os.environ, PARENT: "1073741824"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (ExitCode.LOST_RANK, b"")


def test_a_process_that_no_launcher_started_is_left_alone() -> None:
    code = "from passk_fast.process import die_with_parent; die_with_parent(); print('stayed')"
    names = (PARENT, "TORCHELASTIC_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == b"stayed\n"


def test_an_error_in_a_line() -> None:
    assert in_a_line(ConfigError("optim.lr must be positive.")) == "optim.lr must be positive."
    try:
        {}["a\nb"]
    except KeyError as error:
        text = in_a_line(error)
    assert re.fullmatch(r"KeyError: 'a\\nb' \(test_process.py:\d+\)", text)
    assert len(in_a_line(ValueError("x" * 10**6))) < 600


GRACE = PROGRAM.replace(
    "run_rank(work",
    """
def flagged():
    from passk_fast.run.signals import StopFlag
    StopFlag(0.5).install()
run_rank(work""",
)


def test_the_grace_is_kept_while_the_main_thread_waits() -> None:
    start = time.monotonic()
    work = "flagged(); import os; os.kill(os.getpid(), 15); blocked()"
    done = run_program(GRACE.format(work=work))
    assert done.returncode == ExitCode.LOST_RANK
    assert "leaves with" not in done.stdout
    assert time.monotonic() - start >= 0.5


def test_a_fork_has_the_default_handlers() -> None:
    work = """import os, signal
    if os.fork() == 0:
        os.kill(os.getpid(), 15)
        os._exit(0)
    _, status = os.wait()
    return ExitCode(10 if os.WTERMSIG(status) == 15 else 1)"""
    assert run_program(PROGRAM.format(work=work)).returncode == 10
