"""`passk-fast curves`: advantage and eta of estimators as CSV and pictures."""

from __future__ import annotations

from pathlib import Path

from passk_fast.commands.arguments import take, whole
from passk_fast.errors import ConfigError, ExitCode


def command(arguments: list[str]) -> ExitCode:
    """Write the curves and print where each is largest."""
    from passk_fast.report.estimator_curves import FIGURE_9, write_curves

    count = take(arguments, "--num-rollouts")
    count = "32" if count is None else count
    out = Path(take(arguments, "--out") or "curves")
    number = whole(count)
    if number is None:
        raise ConfigError(f"command line: --num-rollouts must be a whole number, got {count!r}.")
    unknown = next((a for a in arguments if a.startswith("-")), None)
    if unknown:
        raise ConfigError(f"command line: passk-fast curves has no option {unknown!r}.")
    curves, paths = write_curves(arguments or FIGURE_9, number, out)
    for curve in curves:
        print(curve.summary())
    print(f"Wrote {', '.join(map(str, paths))}")
    return ExitCode.DONE
