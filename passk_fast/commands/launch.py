"""`passk-fast launch`: one host's part of a run over several, started again after a lost rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from passk_fast.commands.arguments import config_file, take
from passk_fast.commands.ranks import run_child
from passk_fast.commands.restarts import max_restarts, restarted


def command(arguments: list[str]) -> int:
    """Run this host's workers; the exit code that they chose.

    A training is started again as `restarted` says. Every host comes to that by itself: its workers
    end when those of another one do, and the ledger, on shared storage, tells all of them the same.
    """
    from passk_fast.cluster.launch import launch, parse
    from passk_fast.config.file import load_config

    limit = max_restarts(take(arguments, "--max-restarts"))
    options, rest = parse(arguments)
    if options.command != "train":
        return launch(arguments)
    folder = Path(load_config(*config_file(list(rest), "train")).output_dir)

    def start(before: int, signals: list[int]) -> int:
        # Each start meets under a name of its own: a host that is late must not join an older one.
        name = f"{options.run_id}-{before}" if before else options.run_id
        rest = ["--run-id", name, *_without(arguments, "--run-id")]
        command = [sys.executable, "-m", "passk_fast.cluster.launch", *rest]
        return run_child(command, dict(os.environ), signals)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return restarted(start, folder, limit, say)


def _without(arguments: list[str], name: str) -> list[str]:
    rest = list(arguments)
    take(rest, name)
    return rest
