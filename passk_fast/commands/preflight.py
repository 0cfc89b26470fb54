"""`passk-fast preflight`: the checks of machines, on one rank per GPU of this host."""

from __future__ import annotations

import os

from passk_fast.commands.arguments import positive, take
from passk_fast.commands.ranks import num_gpus, start_ranks
from passk_fast.errors import ExitCode


def command(arguments: list[str]) -> ExitCode:
    """Start the ranks, or be one where torchrun started this process."""
    from passk_fast.cluster.report import parse

    wanted = take(arguments, "--nproc")
    options, _ = parse(arguments)  # --help and mistakes before any process starts
    if "RANK" in os.environ:
        from passk_fast.cluster.check import main as check_machines

        check_machines(arguments)
    gpus = 0 if options.device == "cpu" else num_gpus()
    processes = max(1, gpus) if wanted is None else positive(wanted, "--nproc")
    returned = start_ranks(processes, "passk_fast.cluster.check", arguments)
    return ExitCode.DONE if returned == 0 else ExitCode.BAD_CONFIG
