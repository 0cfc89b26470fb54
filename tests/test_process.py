"""How a rank reports an error, and the code that it leaves with."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from passk_fast.errors import ConfigError, DiskError, ExitCode, LostRankError
from passk_fast.process import quiet, report_error


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
    assert report_error(error, 1) == ExitCode.LOST_RANK
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


PROGRAM = """
import threading, time
from passk_fast.errors import ExitCode, NoSignalError
from passk_fast.process import run_rank
threading.Thread(target=time.sleep, args=(300,)).start()
def work():
    print("worked")
    {work}
run_rank(work, lambda code: print("leaves with", int(code)))
"""


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("return ExitCode.PREEMPTED", ExitCode.PREEMPTED),
        ("raise NoSignalError('all wrong')", ExitCode.NO_SIGNAL),
        ("raise KeyboardInterrupt", ExitCode.LOST_RANK),
    ],
)
def test_a_rank_leaves_with_a_code_and_waits_for_no_thread(work: str, code: ExitCode) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == f"worked\nleaves with {int(code)}\n"
