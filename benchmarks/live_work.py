"""Steps/s with and without the work on zero-advantage groups: `passk-fast bench` in turn.

    python benchmarks/live_work.py --repeats 3 --out benchmarks/results/live_work_cpu.json

N = 16, k = 8; rewards are random and binary with a given mean, so groups differ as samples of one
prompt do. Every mode is a run of its own, in turn (off, skip, ..., off, ...); the figure of a mode
is the median over the repeats of the median step.

- off: every sequence is trained on its own and everything is sampled.
- skip: without zero-advantage sequences in the update; the same weights up to rounding.
- skip, share: a prompt's tokens are trained once for its responses too.
- all: groups whose advantage is sure to be zero are stopped too. The loss is over the tokens of
  informative groups, since what is not sampled cannot be counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from passk_fast.provenance import machine

CONFIG = Path(__file__).parents[1] / "configs" / "maze_cpu.toml"
LOAD = [
    "--prompts-per-step",
    "16",
    "--algorithm.k",
    "8",
    "--rollout.max-response-tokens",
    "64",
    "--bench.response-mean",
    "24",
    "--bench.prompt-tokens",
    "56",
]
MODES = {
    "off": ["--algorithm.skip-zero-advantage", "off", "--no-share-prompts"],
    "skip": ["--no-share-prompts"],
    "skip, share": [],
    "all": ["--rollout.early-stop", "--algorithm.loss-denominator", "informative_tokens"],
}


def one(mode: str, accuracy: float, steps: int) -> dict[str, Any]:
    """One run of a mode."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "passk_fast", "bench", str(CONFIG), "--out", str(out)]
        options = ["--bench.accuracy", str(accuracy), "--bench.steps", str(steps)]
        done = subprocess.run(
            [*command, *LOAD, *options, *MODES[mode]], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{mode} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return json.loads(out.read_text())


def main() -> None:
    """All modes at all accuracies, then their ratios to `off`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accuracy", type=float, nargs="+", default=[0.1, 0.7])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        str(accuracy): {mode: [] for mode in MODES} for accuracy in arguments.accuracy
    }
    for _ in range(arguments.repeats):
        for accuracy, modes in runs.items():
            for mode, results in modes.items():
                results.append(one(mode, float(accuracy), arguments.steps))
                print(accuracy, mode, f"{results[-1]['step_s']:.3f} s", flush=True)
    step = {
        accuracy: {
            mode: statistics.median(r["step_s"] for r in results) for mode, results in modes.items()
        }
        for accuracy, modes in runs.items()
    }
    report = {
        "what": "steps/s against the run with everything off",
        "load": " ".join([*LOAD, str(CONFIG.name)]),
        "repeats": arguments.repeats,
        "machine": machine([]),
        "step_s": step,
        "speedup": {
            accuracy: {mode: modes["off"] / seconds for mode, seconds in modes.items()}
            for accuracy, modes in step.items()
        },
        "runs": runs,
    }
    print(json.dumps({"step_s": step, "speedup": report["speedup"]}, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
