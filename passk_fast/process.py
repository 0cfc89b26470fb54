"""A process of ours: kept quiet while it works, and heard when it ends with an error."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings

from passk_fast.errors import ExitCode, LostRankError, PasskError

_LOST = ("gloo", "Connection closed by peer", "Timed out", "NCCL", "Broken pipe")


def quiet() -> None:
    """Keep libraries from talking over the progress display."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.WARNING)
    for name in ("megatron", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _as_user_error(error: BaseException) -> PasskError | None:
    if isinstance(error, PasskError):
        return error
    text = str(error)
    if isinstance(error, RuntimeError) and any(word in text for word in _LOST):
        return LostRankError(f"A rank was lost or a collective timed out: {text.splitlines()[0]}")
    return None


def report_error(error: BaseException, rank: int) -> ExitCode:
    """Print a user's error as one paragraph (once), anything else as a traceback."""
    known = _as_user_error(error)
    if known is None:
        traceback.print_exception(error)
        return ExitCode.LOST_RANK
    if rank == 0 or isinstance(known, LostRankError):
        print(f"error: {known}", file=sys.stderr, flush=True)
    return known.exit_code
