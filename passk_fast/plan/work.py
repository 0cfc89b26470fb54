"""Time of a step by roofline: operations and bytes of each part over the hardware's rates."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Self

from passk_fast.config import RunConfig
from passk_fast.model.flops import ModelFlops, Work
from passk_fast.model.shape import ModelShape
from passk_fast.plan.facts import Facts
from passk_fast.plan.hardware import RANKS_PER_NODE, RATES, Gpu
from passk_fast.plan.memory import EngineMemory


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step's sequences, all of mean length: bench.prompt_tokens and bench.response_mean, by
    default the longest prompt and half of the longest response."""

    prompts: int
    rollouts: int
    prompt: int
    response: int
    longest: int
    """Tokens of the longest response."""

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Lengths from `bench`, else from the limits of `rollout`."""
        return cls(
            prompts=config.prompts_per_step,
            rollouts=config.algorithm.num_rollouts,
            prompt=config.bench.prompt_tokens or config.rollout.max_prompt_tokens,
            response=int(config.bench.response_mean or config.rollout.max_response_tokens / 2),
            longest=config.rollout.max_response_tokens,
        )

    @property
    def sequences(self) -> int:
        return self.prompts * self.rollouts

    @property
    def tokens(self) -> int:
        """Prompt and response tokens of all sequences, unpadded."""
        return self.sequences * (self.prompt + self.response)

    def trained(self, shared: bool) -> Work:
        """What the trainer computes, if no group has zero advantages. The plan takes
        share_prompts = "auto" as off, as it is with Transformer Engine."""
        if shared:
            one = Work.of_shared(self.prompt, [self.response] * self.rollouts)
            count = self.prompts
        else:
            one = Work.of_sequence(self.prompt, self.response)
            count = self.sequences
        return Work(one.tokens * count, one.scored * count, one.pairs * count)

    def micro_batches(self, config: RunConfig, gpus: int) -> int:
        """Of one data-parallel rank in one optimizer step, each full."""
        data = config.parallel.data(gpus)
        tokens = self.trained(config.share_prompts is True).tokens / config.algorithm.minibatches
        return max(1, ceil(tokens / data / config.micro_batch_tokens))


@dataclass(frozen=True, kw_only=True)
class DecodeTime:
    """Of one step, in seconds."""

    concurrency: int
    """Sequences decoded together on one engine."""
    steps: int
    weights: float
    """Reading weights, or computing with them where that takes longer."""
    keys: float
    """Reading keys and values."""
    overhead: float
    """Collectives, scheduling, sampling."""
    prefill: float

    @property
    def total(self) -> float:
        return self.weights + self.keys + self.overhead + self.prefill


def decode_time(
    config: RunConfig,
    work: Workload,
    flops: ModelFlops,
    shape: ModelShape,
    engine: EngineMemory,
    gpu: Gpu,
    gpus: int,
) -> DecodeTime:
    """Every engine has an equal share; a step lasts as long as its longest response."""
    tensor = config.rollout.tensor
    mine = ceil(work.sequences / (gpus // tensor))
    fit = engine.kv_tokens // (work.prompt + work.response)
    concurrency = max(1, min(config.rollout.max_num_seqs, mine, fit))
    steps = max(ceil(mine / concurrency) * work.response, work.longest)
    together = mine * work.response / steps
    bandwidth = gpu.memory_bytes * RATES.memory
    size = 2 if config.model.dtype == "bfloat16" else 4
    embedding = size * shape.vocab * shape.hidden // tensor
    expert = 0.0
    if shape.num_experts:
        unread = (1 - shape.experts_per_token / shape.num_experts) ** together
        expert = 3 * shape.hidden * shape.expert_width * shape.num_experts * shape.num_layers
        expert *= size / tensor * unread
    per_step = max(0.0, engine.weights - embedding - expert) / bandwidth
    a_token = 2 * (flops.layers * flops.layer_weights + flops.head_weights)
    rate = tensor * gpu.flops * RATES.matmul
    compute = together * a_token / rate
    context = work.prompt + work.response / 2
    keys = mine * work.response * context * engine.kv_bytes_per_token / bandwidth
    hop = RATES.collective_s + together * shape.hidden * 2 / (gpu.link_bytes * RATES.link)
    collectives = 2 * shape.num_layers * hop if tensor > 1 else 0.0
    prompts = ceil(work.prompts / (gpus // tensor))
    pairs = work.prompt * (work.prompt + 1) // 2
    prefill = flops.forward(Work(prompts * work.prompt, 0, prompts * pairs)) / rate
    return DecodeTime(
        concurrency=concurrency,
        steps=steps,
        weights=steps * max(per_step, compute),
        keys=keys,
        overhead=steps * (collectives + RATES.step_s),
        prefill=prefill,
    )


@dataclass(frozen=True, kw_only=True)
class TrainTime:
    """Of one step on the slowest rank, in seconds."""

    micro_batches: int
    matmul: float
    attention: float
    elementwise: float
    head: float
    tensor_traffic: float
    """Collectives of tensor and context parallelism."""
    expert_traffic: float
    bubble: float
    gradient_traffic: float
    """Gradients to their owners, weights back."""
    optimizer: float
    extra_forward: float
    """Log-probs of the policy before the step (several minibatches) and of the reference."""

    @property
    def total(self) -> float:
        return (
            self.matmul + self.attention + self.elementwise + self.head + self.tensor_traffic
            + self.expert_traffic + self.bubble + self.gradient_traffic + self.optimizer
            + self.extra_forward
        )  # fmt: skip


def train_time(
    config: RunConfig,
    work: Workload,
    flops: ModelFlops,
    shape: ModelShape,
    facts: Facts,
    gpu: Gpu,
    gpus: int,
) -> TrainTime:
    """Compute, memory and network one after the other: nothing overlaps."""
    parallel = config.parallel
    done = work.trained(config.share_prompts is True)
    mode, minibatches = parallel.recompute, config.algorithm.minibatches
    micro = work.micro_batches(config, gpus) * minibatches
    passes = 4.0 if mode == "full" else 3.0
    a_gpu = gpu.flops * gpus
    expert = _expert_weights(shape)
    dense = flops.layer_weights - expert
    linear = 2 * done.tokens * flops.layers / a_gpu
    matmul = passes * linear * (dense / RATES.matmul + expert / RATES.grouped)
    seen = 4 * flops.attention_width * done.pairs * flops.layers / a_gpu
    attention = (passes if mode != "selective" else 4.0) * seen / RATES.attention
    # Only the last stage has the head; the other stages wait for it.
    head = 3 * 2 * flops.head_weights * done.scored * parallel.pipeline / a_gpu / RATES.matmul
    ranks = gpus // parallel.pipeline
    full = done.tokens * parallel.tensor * parallel.context / ranks / config.micro_batch_tokens
    layers = shape.num_layers // parallel.pipeline
    one, two = facts.costs[mode]["one"], facts.costs[mode]["two"]
    bandwidth = gpu.memory_bytes * RATES.memory
    elementwise = full * layers * (two.element_bytes - one.element_bytes) / bandwidth
    sent = sum(two.sent.values()) - sum(one.sent.values())
    near = parallel.tensor * parallel.context <= RANKS_PER_NODE
    tensor_traffic = full * layers * sent / _rate(gpu, near)
    experts = full * layers * _expert_traffic(config, shape, gpu)
    busy = matmul + attention + elementwise + head + tensor_traffic + experts
    bubble = busy * (parallel.pipeline - 1) / (parallel.virtual_pipeline * micro / minibatches)
    forwards = (minibatches > 1) + (config.loss.kl_coef > 0)
    return TrainTime(
        micro_batches=micro,
        matmul=matmul,
        attention=attention,
        elementwise=elementwise,
        head=head,
        tensor_traffic=tensor_traffic,
        expert_traffic=experts,
        bubble=bubble,
        gradient_traffic=minibatches * _gradient_traffic(config, facts, gpu, gpus),
        optimizer=minibatches * _optimizer_bytes(facts) / bandwidth,
        extra_forward=forwards * (busy + bubble) / passes,
    )


def bubble_share(config: RunConfig, micro_batches: int) -> float:
    """(p - 1) / (v m + p - 1): idle share of a stage in Megatron's schedules."""
    stages, virtual = config.parallel.pipeline, config.parallel.virtual_pipeline
    return (stages - 1) / (virtual * micro_batches + stages - 1)


def _rate(gpu: Gpu, near: bool) -> float:
    return gpu.link_bytes * RATES.link if near else gpu.network_bytes * RATES.network


def _expert_weights(shape: ModelShape) -> int:
    if not shape.num_experts:
        return 0
    return int(3 * shape.hidden * shape.expert_width * shape.experts_per_token)


def _expert_traffic(config: RunConfig, shape: ModelShape, gpu: Gpu) -> float:
    """Seconds of all-to-all in one layer and micro-batch: there and back, forward and backward."""
    parallel = config.parallel
    if not shape.num_experts or parallel.expert == 1:
        return 0.0
    rows = config.micro_batch_tokens / parallel.tensor / parallel.context
    size = rows * shape.experts_per_token * shape.hidden * 2
    times = 6 if parallel.recompute == "full" else 4
    near = min(parallel.expert, max(1, RANKS_PER_NODE // parallel.expert_tensor))
    inside = times * size * (near - 1) / parallel.expert
    outside = times * size * (parallel.expert - near) / parallel.expert
    return inside / _rate(gpu, True) + outside / _rate(gpu, False)


def _gradient_traffic(config: RunConfig, facts: Facts, gpu: Gpu, gpus: int) -> float:
    """Once an optimizer step: float32 gradients, and weights back; nothing overlaps."""
    parallel = config.parallel
    stage = max(facts.stages, key=lambda s: s.weights)
    size = stage.parameters / max(1, stage.weights)
    each = 4 + (size if parallel.distributed_optimizer else 4)
    near = gpus <= RANKS_PER_NODE
    total = 0.0
    experts = gpus // (parallel.pipeline * parallel.expert * parallel.expert_tensor)
    for weights, group in (
        (stage.weights - stage.expert_weights, gpus // (parallel.pipeline * parallel.tensor)),
        (stage.expert_weights, experts),
    ):
        total += each * weights * (group - 1) / group / _rate(gpu, near)
    return total


def _optimizer_bytes(facts: Facts) -> float:
    """AdamW in separate passes over gradient, main weight and moments: about 60 bytes a weight."""
    return 60 * max(s.moments for s in facts.stages) / 8
