"""Bytes of every pipeline stage in training and of the engine in sampling, against the GPU's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from passk_fast.config import RunConfig
from passk_fast.model.shape import ModelShape
from passk_fast.plan.facts import Costs, Facts
from passk_fast.plan.hardware import GIB, GRAPHS_GIB, RESERVE_GIB, Gpu
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.placement import Tensors, rollout_side

_ENGINE_BATCH_TOKENS = 16384
"""Tokens that vLLM prefills together, by default, on these GPUs."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """A rank of one pipeline stage; bytes."""

    stage: int
    layers: int
    in_flight: int
    """Micro-batches (of one model chunk) whose activations are alive at once."""
    parameters: int
    gradients: int
    optimizer: int
    reference: int
    """Frozen second model of the KL term."""
    activations: int
    lm_head_loss: int
    optimizer_step: int
    """Temporary memory of the optimizer's step, when activations are gone."""

    @property
    def resident(self) -> int:
        """Held between steps, and while the engine samples."""
        return self.parameters + self.gradients + self.optimizer + self.reference

    @property
    def training(self) -> int:
        """At the peak of an update."""
        return self.resident + max(self.activations + self.lm_head_loss, self.optimizer_step)


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """One rank of a rollout engine; bytes."""

    weights: int
    workspace: int
    """Prefill activations, logits of a sampling step, CUDA graphs."""
    kv_cache: int
    """What is left for keys and values; negative when nothing is."""
    kv_bytes_per_token: int

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values the engine holds."""
        return max(0, self.kv_cache) // self.kv_bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All of it, on the fullest ranks."""

    stages: tuple[StageMemory, ...]
    engine: EngineMemory
    capacity: int
    reserve: int
    """CUDA, NCCL, fragmentation."""
    awake: int
    """Reserved by the engine while it samples."""
    asleep: int
    """Held by the engine while the trainer updates, where they share a GPU."""
    apart: bool = False
    """Whether engines have GPUs of their own (rollout.dedicated_ranks)."""

    @property
    def training_peak(self) -> int:
        """The fullest stage during an update, everything included."""
        return max(s.training for s in self.stages) + self.reserve + self.asleep

    @property
    def rollout_peak(self) -> int:
        """The fullest rank with an engine while that samples, everything included."""
        return self.beside_engine + self.reserve + self.awake

    @property
    def beside_engine(self) -> int:
        """What the trainer holds on an engine's GPU."""
        return 0 if self.apart else max(s.resident for s in self.stages)


def chunk_bytes(runs: Mapping[str, Costs], layers: int, first: bool, last: bool) -> int:
    """Saved between forward and backward by a chunk, from runs of one and two layers."""
    one = runs["one"].saved
    saved = one + (layers - 1) * (runs["two"].saved - one)
    return saved + sum(runs[n].saved - one for n, on in (("first", first), ("last", last)) if on)


def transient_bytes(runs: Mapping[str, Costs]) -> int:
    """Alive for a moment on top of what is saved, at most."""
    return max(run.peak - run.saved for run in runs.values())


def in_flight(stage: int, stages: int, virtual: int, micro_batches: int) -> int:
    """Chunks whose activations stage `stage` holds at once (1F1B, or interleaved)."""
    if virtual == 1:
        return min(micro_batches, stages - stage)
    warm_up = (stages - stage - 1) * 2 + (virtual - 1) * stages + 1
    return min(micro_batches * virtual, warm_up)


def stage_memory(
    config: RunConfig, facts: Facts, shape: ModelShape, micro_batches: int, stage: int
) -> StageMemory:
    """Of a rank of pipeline stage `stage`."""
    parallel = config.parallel
    stages, virtual = parallel.pipeline, parallel.virtual_pipeline
    held = facts.stage(stage, stages)
    runs = facts.costs[parallel.recompute]
    layers = shape.num_layers // (stages * virtual)
    first, last = stage == 0, stage == stages - 1
    alive = in_flight(stage, stages, virtual, micro_batches)
    ends = first and virtual > 1, last and virtual > 1
    per_chunk = chunk_bytes(runs, layers, first and not ends[0], last and not ends[1])
    activations = alive * per_chunk + transient_bytes(runs)
    if any(ends):  # one chunk in `virtual` has the end
        extra = chunk_bytes(runs, layers, *ends) - per_chunk
        activations += extra * -(-alive // virtual)
    return StageMemory(
        stage=stage,
        layers=layers * virtual,
        in_flight=alive,
        parameters=held.parameters,
        gradients=held.gradients,
        optimizer=held.optimizer,
        reference=held.parameters if config.loss.kl_coef > 0 else 0,
        activations=activations,
        lm_head_loss=_loss_head(config, facts, shape) if last else 0,
        optimizer_step=held.moments // 2,
    )


def _loss_head(config: RunConfig, facts: Facts, shape: ModelShape) -> int:
    """Fused: the bound of its temporaries (or all rows, if they need less) and dX."""
    if facts.logits_head:
        return facts.logits_head
    tensor, context = config.parallel.tensor, config.parallel.context
    rows = config.micro_batch_tokens // context
    needed = rows * (2 * shape.trainer_vocab(tensor) // tensor + 6 * shape.hidden)
    return (
        min(int(config.lm_head_loss_memory_gib * GIB), needed) + 2 * rows * shape.hidden // tensor
    )


def engine_weights(tensors: Tensors, tensor: int, element_bytes: int) -> int:
    """Bytes of the largest rank of an engine of `tensor` ranks, by the layout table."""
    side = rollout_side(tensors, RolloutMesh(world=tensor, tensor=tensor))
    sizes = []
    for part in side.parts:
        _, _, r0, r1, c0, c1, _, _ = part.astype(np.int64).T
        sizes.append(int(((r1 - r0) * (c1 - c0)).sum()))
    return max(sizes) * element_bytes


def engine_memory(config: RunConfig, tensors: Tensors, gpu: Gpu) -> EngineMemory:
    """Of one engine rank under rollout.gpu_memory_utilization."""
    rollout, shape = config.rollout, tensors.shape
    size = 2 if config.model.dtype == "bfloat16" else 4
    weights = engine_weights(tensors, rollout.tensor, size)
    width = shape.mlp_width * (shape.experts_per_token or 1)
    prefill = _ENGINE_BATCH_TOKENS * (2 * width // rollout.tensor + 4 * shape.hidden) * size
    logits = 12 * rollout.max_num_seqs * shape.vocab
    graphs = 0 if rollout.enforce_eager else int(GRAPHS_GIB * GIB)
    workspace = prefill + logits + graphs
    heads = max(1, shape.num_kv_heads // rollout.tensor)
    reserved = int(rollout.gpu_memory_utilization * gpu.memory_gib * GIB)
    return EngineMemory(
        weights=weights,
        workspace=workspace,
        kv_cache=reserved - weights - workspace,
        kv_bytes_per_token=2 * shape.num_layers * heads * shape.head_dim * size,
    )


def memory_of(
    config: RunConfig, facts: Facts, tensors: Tensors, gpu: Gpu, micro_batches: int
) -> Memory:
    """Every stage's bytes and the engine's."""
    rollout = config.rollout
    awake = int(rollout.gpu_memory_utilization * gpu.memory_gib * GIB)
    graphs = 0 if rollout.enforce_eager else int(GRAPHS_GIB * GIB)
    return Memory(
        stages=tuple(
            stage_memory(config, facts, tensors.shape, micro_batches, stage)
            for stage in range(config.parallel.pipeline)
        ),
        engine=engine_memory(config, tensors, gpu),
        capacity=int(gpu.memory_gib * GIB),
        reserve=int(RESERVE_GIB * GIB),
        awake=awake + 2 * rollout.sync_mib * 2**20,
        asleep=0 if rollout.dedicated_ranks else graphs if rollout.sleep else awake,
        apart=bool(rollout.dedicated_ranks),
    )


def shortcomings(config: RunConfig, memory: Memory) -> list[str]:
    """What does not fit, one sentence each; empty when everything does."""
    out = []
    capacity = memory.capacity / GIB
    worst = max(memory.stages, key=lambda s: s.training)
    if memory.training_peak > memory.capacity:
        out.append(
            f"an update needs {memory.training_peak / GIB:.1f} GiB on a rank of pipeline stage "
            f"{worst.stage} (weights, gradients, optimizer {worst.resident / GIB:.1f}, activations "
            f"{worst.activations / GIB:.1f}, loss head {worst.lm_head_loss / GIB:.1f}, engine "
            f"{memory.asleep / GIB:.1f}, reserve {memory.reserve / GIB:.1f}) of {capacity:.1f}"
        )
    if memory.rollout_peak > memory.capacity:
        out.append(
            f"sampling needs {memory.rollout_peak / GIB:.1f} GiB (trainer "
            f"{memory.beside_engine / GIB:.1f}, engine and its sync buffers "
            f"{memory.awake / GIB:.1f}, reserve {memory.reserve / GIB:.1f}) of {capacity:.1f}"
        )
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if memory.engine.kv_tokens < longest:
        engine = memory.engine
        out.append(
            f"rollout.gpu_memory_utilization = {config.rollout.gpu_memory_utilization:g} leaves "
            f"{engine.kv_cache / GIB:.1f} GiB for keys and values next to weights of "
            f"{engine.weights / GIB:.1f} and workspace of {engine.workspace / GIB:.1f}; one "
            f"sequence of {longest} tokens needs {longest * engine.kv_bytes_per_token / GIB:.1f}"
        )
    return out
