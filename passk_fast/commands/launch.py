"""`passk-fast launch`: one host's part of a run over several."""

from __future__ import annotations


def command(arguments: list[str]) -> int:
    """Run this host's workers; the exit code that they chose."""
    from passk_fast.cluster.launch import launch

    return launch(arguments)
