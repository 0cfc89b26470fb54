"""How a rank reports an error, and the code that it leaves with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from passk_fast.errors import ConfigError, DivergedError, ExitCode, LostRankError
from passk_fast.process import report_error


@pytest.mark.parametrize(
    ("error", "rank", "code", "printed"),
    [
        (ConfigError("k is 0"), 0, ExitCode.BAD_CONFIG, "error: k is 0\n"),
        (ConfigError("k is 0"), 1, ExitCode.BAD_CONFIG, ""),  # rank 0 has said it
        (DivergedError("NaN"), 0, ExitCode.DIVERGED, "error: NaN\n"),
        (LostRankError("gone"), 3, ExitCode.LOST_RANK, "error: gone\n"),
        (
            RuntimeError("[gloo] Connection closed by peer\nmore"),
            1,
            ExitCode.LOST_RANK,
            "error: A rank was lost or a collective timed out: [gloo] Connection closed by peer\n",
        ),
    ],
)
def test_a_users_error_is_one_paragraph(
    error: Exception, rank: int, code: ExitCode, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error, rank) == code
    assert capsys.readouterr().err == printed


def test_any_other_error_has_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(KeyError("x"), 1) == ExitCode.LOST_RANK
    assert "KeyError: 'x'" in capsys.readouterr().err


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
