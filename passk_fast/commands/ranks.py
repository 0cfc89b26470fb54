"""The ranks of a command on this machine: their number, torchrun's start, the code they leave."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

from passk_fast.cluster.exit_code_file import read_exit_code, write_exit_code
from passk_fast.commands.arguments import positive
from passk_fast.config import RunConfig
from passk_fast.errors import ExitCode, LostRankError
from passk_fast.process import PARENT

_MAX_CPU_RANKS = 4
_MOST_RANKS = 1024
"""On one machine: more are a slip of the pen that would bring it down."""
_SIGNALLED = 128
"""torchrun's exit code after a signal is this plus the signal's number, as shells have it."""


def num_gpus() -> int:
    """GPUs that nvidia-smi lists; 0 where there is none of either."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def num_processes(config: RunConfig, wanted: str | None) -> int:
    """Processes to start: as asked (--nproc), else one per GPU, else one per CPU core.

    On a CPU two ranks of one thread beat one of two: half of decoding a small model is Python.
    Each has an engine's memory, hence at most _MAX_CPU_RANKS. ConfigError for a bad --nproc.
    """
    if wanted is not None:
        return positive(wanted, "--nproc", _MOST_RANKS)
    parallel, dedicated = config.parallel, config.rollout.dedicated_ranks
    product = parallel.tensor * parallel.pipeline * parallel.context
    gpus = 0 if config.device == "cpu" else num_gpus()
    if gpus:
        return max(product, (gpus - dedicated) // product * product) + dedicated
    smallest = product if dedicated else math.lcm(product, config.rollout.tensor)
    most = min(len(os.sched_getaffinity(0)), _MAX_CPU_RANKS) - dedicated
    return max(smallest, most // smallest * smallest) + dedicated


def start_ranks(
    processes: int, module: str, arguments: list[str], signals: list[int] | None = None
) -> int:
    """Run `module` in ranks under torchrun and return their exit code.

    SIGINT and SIGTERM that this process gets meanwhile are handed on, and added to `signals`.
    """
    cores = len(os.sched_getaffinity(0))
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTHONWARNINGS": "ignore",
    } | dict(os.environ)
    command = [
        sys.executable,
        "-m",
        "passk_fast.cluster.torchrun",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        module,
        *arguments,
    ]
    # Workers report for themselves; torchrun's own account of a failure is noise on top.
    environment.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    environment.setdefault("LOGLEVEL", "CRITICAL")
    return run_child(command, environment, [] if signals is None else signals)


def run_child(command: list[str], environment: dict[str, str], signals: list[int]) -> int:
    """Run a process that ends with this one; its exit code. For `signals` see `start_ranks`."""
    environment = {**environment, PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:

        def forward(number: int, frame: object) -> None:
            signals.append(number)
            child.send_signal(number)

        previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            return child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def code_of_ranks(returned: int, folder: Path, message: str) -> ExitCode:
    """The code that the ranks left in a folder; LostRankError with `message` where they failed
    and left none. `returned` is the one of `start_ranks`."""
    code = read_exit_code(folder)
    if returned >= _SIGNALLED and code in (None, ExitCode.DONE):
        return ExitCode.PREEMPTED  # before there was a step to save
    if returned != 0 and code in (None, ExitCode.DONE):
        raise LostRankError(message)
    return ExitCode.DONE if code is None else code


def leave_exit_code(folder: Path, rank: int, code: ExitCode) -> None:
    """Write the code for `code_of_ranks`: rank 0 always does, another rank after an error.

    That a rank was lost is what the others see of an error, so it does not replace one.
    """
    if code == ExitCode.LOST_RANK and read_exit_code(folder) not in (None, ExitCode.DONE):
        return
    if rank == 0 or code not in (ExitCode.DONE, ExitCode.PREEMPTED):
        write_exit_code(folder, code)
