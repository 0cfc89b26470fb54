"""The study in one command: runs what is missing, then writes tables and plots.

    python -m benchmarks.experiments.study run [--out runs/experiments] [--workers 2] [--minutes M]
    python -m benchmarks.experiments.study report [--out runs/experiments]

`run` resumes where it stopped: finished runs are kept, those in progress begin again. Every worker
is a process of one thread. With --minutes M it ends about then, and no run begins that would not
fit; the next call goes on. `report` writes benchmarks/results/experiments/ and the generated part
of docs/experiments.md, from however many runs are done.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(out: Path, workers: int, minutes: float) -> int:
    """All missing runs, or as many as fit into `minutes`; the number of workers that failed."""
    from dataclasses import replace

    from benchmarks.experiments.arms import base_config
    from benchmarks.experiments.store import Store
    from passk_fast.run.warm_start import cache_folder

    Store(out, base_config()).forget_claims()
    environment = dict(os.environ) | dict.fromkeys(_THREADS, "1") | {"PYTHONWARNINGS": "ignore"}
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.experiments.worker", str(out)]
    # The warm start is made once: with an empty cache the first worker starts alone.
    base = replace(base_config(), output_dir=str(out))
    if not (ROOT / cache_folder(base)).is_dir():
        warm = [*command, "warm-start"]
        subprocess.run(warm, cwd=ROOT, env=environment, check=True)
    command.append(str(minutes - (time.monotonic() - begun) / 60))
    children = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(workers)]
    return sum(child.wait() != 0 for child in children)


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf)
    options = parser.parse_args()
    failed = 0
    if options.command == "run":
        failed = run(options.out.resolve(), options.workers, options.minutes)
    from benchmarks.experiments.report import write_report

    write_report(options.out.resolve())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
