"""torchrun without its own account of a failure: ranks have reported theirs in one paragraph.

python -m passk_fast.cluster.torchrun --standalone --nproc-per-node 2 -m MODULE ...
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable

from passk_fast.errors import ExitCode
from passk_fast.process import PARENT, die_with_parent


def exit_code(codes: Iterable[int]) -> int:
    """One code of the workers': the first that one of them chose; all killed is a lost rank."""
    return next((code for code in codes if code > 0), int(ExitCode.LOST_RANK))


def run(arguments: list[str]) -> int:
    """Run torchrun in this process; returns the workers' exit code.

    After a signal to this process it is 128 plus its number, as shells have it. torchrun logs a
    line for each failure; it is shown where the variable LOGLEVEL is below ERROR.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from passk_fast.cluster import loopback

    if os.environ.get("LOGLEVEL", "ERROR").upper() in ("ERROR", "CRITICAL"):
        logging.disable(logging.ERROR)
    os.environ[PARENT] = str(os.getpid())  # of the workers
    try:
        options = torchrun.parse_args(arguments)
        if options.standalone:
            loopback.take_over(options)
        torchrun.run(options)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        return exit_code(failure.exitcode for _, failure in failures)
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(run(sys.argv[1:]))
