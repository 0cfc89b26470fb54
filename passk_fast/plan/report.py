"""A plan as text, and as JSON for scripts."""

from __future__ import annotations

from dataclasses import asdict

from passk_fast.plan.hardware import GIB, RATES, RESERVE_GIB
from passk_fast.plan.plan import Plan


def as_text(plan: Plan) -> str:
    """What `passk-fast plan` prints."""
    return "\n".join([*_head(plan), "", *_memory(plan), "", *_step(plan), "", *_end(plan)]) + "\n"


def _head(plan: Plan) -> list[str]:
    parallel, rollout, gpu = plan.config.parallel, plan.config.rollout, plan.gpu
    experts = (
        f", EP {parallel.expert} x ETP {parallel.expert_tensor}" if parallel.expert > 1 else ""
    )
    apart = f" on the last {rollout.dedicated_ranks} GPUs" if rollout.dedicated_ranks else ""
    work = plan.workload
    return [
        f"{plan.model} on {plan.gpus} x {gpu.name}: an estimate, not measured",
        f"{plan.weights / 1e9:.2f} B weights, {plan.active_weights / 1e9:.2f} B per token; trainer "
        f"TP {parallel.tensor}, PP {parallel.pipeline}, VPP {parallel.virtual_pipeline}, CP "
        f"{parallel.context}{experts}, DP {parallel.data(plan.trainers)}; engines of "
        f"{rollout.tensor}{apart}",
        f"A step: {work.prompts} prompts x {work.rollouts} responses, {work.prompt} + "
        f"{work.response} tokens each (means), {work.tokens / 1e6:.2f} M tokens",
    ]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = [
        f"Memory of a rank, GiB of {memory.capacity / GIB:.1f} (recompute: "
        f"{plan.config.parallel.recompute})",
        f"{'stage':>6}{'layers':>7}{'in flight':>10}{'weights':>9}{'grads':>7}{'optim':>7}"
        f"{'activ.':>8}{'head':>6}{'peak':>7}",
    ]
    for s in memory.stages:
        peak = s.training + memory.reserve + memory.asleep
        sizes = (
            s.parameters + s.reference,
            s.gradients,
            s.optimizer,
            s.activations,
            s.lm_head_loss,
        )
        a, b, c, d, e = (size / GIB for size in sizes)
        lines.append(
            f"{s.stage:>6}{s.layers:>7}{s.in_flight:>10}{a:>9.2f}{b:>7.2f}{c:>7.2f}{d:>8.2f}"
            f"{e:>6.2f}{peak / GIB:>7.1f}"
        )
    modes = ", ".join(f"{mode} {size / GIB:.1f}" for mode, size in plan.activations.items())
    engine = memory.engine
    sampling = "A rollout rank" if memory.apart else "While sampling"
    lines += [
        f"Peak includes {memory.reserve / GIB:.1f} for CUDA, NCCL and fragmentation"
        + ("." if memory.apart else f" and {memory.asleep / GIB:.1f} for the engine meanwhile."),
        f"Activations by recompute mode: {modes}",
        f"{sampling}: {memory.rollout_peak / GIB:.1f}, of which the engine's weights "
        f"{engine.weights / GIB:.1f}, workspace {engine.workspace / GIB:.1f}, keys and values "
        f"{engine.kv_cache / GIB:.1f} ({engine.kv_tokens:,} tokens an engine)",
    ]
    return lines


def _step(plan: Plan) -> list[str]:
    total = plan.step_seconds
    lines = ["Time of a step, seconds"]
    for name, seconds in plan.parts.items():
        if seconds:
            lines.append(f"  {name:32}{seconds:>9.2f}{seconds / total:>8.1%}")
    lines.append(f"  {'all':32}{total:>9.2f}")
    reshard, train = plan.reshard, plan.train
    return [
        *lines,
        f"Training: {plan.train_flops / 1e15:.0f} PFLOPs, {train.micro_batches} micro-batches per "
        f"rank, pipeline idle {plan.bubble:.1%}, MFU while training "
        f"{plan.train_flops / train.total / plan.trainers / plan.gpu.flops:.0%}",
        f"Decoding: {plan.decode.concurrency} sequences together, {plan.decode.steps} steps",
        f"Weight sync: a rank receives at most {reshard.received / GIB:.2f} GiB "
        f"({reshard.near:.0%} within its node), {reshard.total / GIB:.0f} GiB in all, "
        f"{reshard.rounds} rounds",
    ]


def _end(plan: Plan) -> list[str]:
    overlap = "only sampling overlaps training" if plan.hidden else "nothing overlaps"
    return [
        f"Bottleneck: {plan.bottleneck}",
        f"Expected: {plan.tokens_per_second:.0f} tokens/s/GPU over the whole step",
        f"Assumed: {RATES.matmul:.0%} of peak in matrix products, {RATES.memory:.0%} of memory "
        f"bandwidth, {RATES.attention:.0%} in attention, {RATES.grouped:.0%} in experts, "
        f"{overlap}, no zero-advantage groups, {RESERVE_GIB:g} GiB reserve. No run has confirmed "
        "this.",
    ]


def as_json(plan: Plan) -> dict[str, object]:
    """All numbers; bytes and seconds."""
    return {
        "estimate": "not measured",
        "model": plan.model,
        "gpu": asdict(plan.gpu),
        "gpus": plan.gpus,
        "weights": plan.weights,
        "active_weights": plan.active_weights,
        "stages": [
            {**asdict(s), "resident": s.resident, "training": s.training}
            for s in plan.memory.stages
        ],
        "training_peak": plan.memory.training_peak,
        "rollout_peak": plan.memory.rollout_peak,
        "capacity": plan.memory.capacity,
        "engine": {**asdict(plan.memory.engine), "kv_tokens": plan.memory.engine.kv_tokens},
        "activations": plan.activations,
        "workload": asdict(plan.workload),
        "train_flops": plan.train_flops,
        "bubble": plan.bubble,
        "reshard": asdict(plan.reshard),
        "seconds": plan.parts,
        "step_seconds": plan.step_seconds,
        "tokens_per_second_per_gpu": plan.tokens_per_second,
        "bottleneck": plan.bottleneck,
    }
