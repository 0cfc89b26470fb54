"""A rank as a process: what it prints, how it reports an error, the code it leaves with."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from passk_fast.errors import ExitCode, LostRankError, PasskError

_LOST = ("gloo", "Connection closed by peer", "Timed out", "NCCL", "Broken pipe")
"""Words of a RuntimeError with which a collective says that another rank is gone."""


def quiet() -> None:
    """Keep libraries from printing over the progress display."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.WARNING)
    for name in ("megatron", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def own_rank() -> int:
    """torchrun's rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def run_rank(
    work: Callable[[], ExitCode], before_exit: Callable[[ExitCode], None] | None = None
) -> NoReturn:
    """Run this rank's work and end the process with a code that says how it went.

    Errors are reported by `report_error`. `before_exit` is told the code, while the connections to
    other ranks still stand. Other threads are not waited for.
    """
    quiet()
    rank = own_rank()  # `work` may change RANK
    try:
        code = work()
    except BaseException as error:
        code = report_error(error, rank)
    if before_exit is not None:
        before_exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # gloo's destructors may hang once a peer has left


def report_error(error: BaseException, rank: int) -> ExitCode:
    """Print a user's error as one paragraph (rank 0 alone does), anything else as a traceback."""
    known = _as_user_error(error)
    if known is None:
        traceback.print_exception(error)
        return ExitCode.LOST_RANK
    if rank == 0 or isinstance(known, LostRankError):
        print(f"error: {known}", file=sys.stderr, flush=True)
    return known.exit_code


def _as_user_error(error: BaseException) -> PasskError | None:
    if isinstance(error, PasskError):
        return error
    if says_rank_lost(error):
        said = str(error).splitlines()[0]
        return LostRankError(f"A rank was lost or a collective timed out: {said}")
    return None


def says_rank_lost(error: BaseException) -> bool:
    """Whether it is a collective's word for a rank that is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
