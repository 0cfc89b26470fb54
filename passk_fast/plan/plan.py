"""A plan: memory, traffic and time of one configuration on one cluster, or why it cannot run."""

from __future__ import annotations

from dataclasses import dataclass

from passk_fast.config import RunConfig
from passk_fast.errors import ConfigError
from passk_fast.model.flops import ModelFlops
from passk_fast.model.shape import ModelShape
from passk_fast.plan.change import smallest_change
from passk_fast.plan.facts import RECOMPUTE, Facts, with_recompute
from passk_fast.plan.fit import Model, memory_on
from passk_fast.plan.hardware import Gpu, sides
from passk_fast.plan.memory import Memory, shortcomings, stage_memory
from passk_fast.plan.traffic import Reshard, reshard_of
from passk_fast.plan.work import (
    DecodeTime,
    TrainTime,
    Workload,
    bubble_share,
    decode_time,
    train_time,
)
from passk_fast.plan.worker import Prober
from passk_fast.weights.placement import Tensors


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An estimate from counted bytes and operations; nothing in it was measured on a GPU."""

    config: RunConfig
    model: str
    gpu: Gpu
    gpus: int
    weights: int
    active_weights: int
    memory: Memory
    activations: dict[str, int]
    """Bytes on the fullest rank, by recompute mode."""
    workload: Workload
    train_flops: float
    decode: DecodeTime
    train: TrainTime
    bubble: float
    """Idle share of a pipeline stage."""
    reshard: Reshard

    @property
    def trainers(self) -> int:
        """GPUs that train."""
        return sides(self.gpus, self.config.rollout.dedicated_ranks)[0]

    @property
    def hidden(self) -> float:
        """Seconds of sampling that overlap training: all of the faster side's."""
        return (
            min(self.decode.total, self.train.total) if self.config.rollout.dedicated_ranks else 0.0
        )

    @property
    def step_seconds(self) -> float:
        return self.decode.total + self.train.total + self.reshard.seconds - self.hidden

    @property
    def tokens_per_second(self) -> float:
        """Unpadded prompt and response tokens, per GPU, over the whole step."""
        return self.workload.tokens / self.step_seconds / self.gpus

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by cause; they add up to the step."""
        decode, train = self.decode, self.train
        return {
            "decode: weights": decode.weights,
            "decode: keys and values": decode.keys,
            "decode: steps and collectives": decode.overhead,
            "prefill": decode.prefill,
            "train: matrix products": train.matmul,
            "train: attention": train.attention,
            "train: elementwise": train.elementwise,
            "train: output layer": train.head,
            "train: tensor-parallel traffic": train.tensor_traffic,
            "train: expert traffic": train.expert_traffic,
            "train: pipeline bubble": train.bubble,
            "train: gradients and weights": train.gradient_traffic,
            "train: optimizer": train.optimizer,
            "train: forwards for log-probs": train.extra_forward,
            "weight sync": self.reshard.seconds,
            "sampling overlapped with training": 0.0 - self.hidden,
        }

    @property
    def bottleneck(self) -> str:
        """The largest part; where sampling overlaps training, the largest of the slower side."""
        training = self.train.total > self.decode.total
        names = [
            name
            for name in self.parts
            if not self.hidden or name == "weight sync" or name.startswith("train") == training
        ]
        return max(names, key=lambda name: self.parts[name])


def make_plan(config: RunConfig, model: Model, gpu: Gpu, gpus: int, prober: Prober) -> Plan:
    """The plan; ConfigError, naming the smallest change that helps, for what does not fit."""
    memory, facts, tensors = memory_on(config, model, gpu, gpus, prober)
    problems = shortcomings(config, memory)
    if problems:
        advice = smallest_change(config, model, gpu, gpus, prober)
        raise ConfigError(
            f"{model.folder.name} on {gpus} x {gpu.name} does not fit: {'; '.join(problems)}. "
            f"{advice}"
        )
    shape = tensors.shape
    flops, work = ModelFlops.of(shape), Workload.of(config)
    trainers, engines = sides(gpus, config.rollout.dedicated_ranks)
    micro = work.micro_batches(config, trainers)
    return Plan(
        config=config,
        model=model.folder.name,
        gpu=gpu,
        gpus=gpus,
        weights=_count(tensors),
        active_weights=flops.layers * flops.layer_weights + flops.head_weights,
        memory=memory,
        activations=_activations(config, facts, shape, micro),
        workload=work,
        train_flops=flops.train(work.trained(config.share_prompts is True)),
        decode=decode_time(config, work, flops, shape, memory.engine, gpu, engines),
        train=train_time(config, work, flops, shape, facts, gpu, trainers),
        bubble=bubble_share(config, micro),
        reshard=reshard_of(config, tensors, gpu, gpus),
    )


def _count(tensors: Tensors) -> int:
    """Weights of the whole model."""
    total = 0
    for row, start, end in zip(tensors.rows, tensors.first, tensors.first[1:], strict=False):
        size = 1
        for length in row.shape:
            size *= length
        total += size * (end - start)
    return total


def _activations(config: RunConfig, facts: Facts, shape: ModelShape, micro: int) -> dict[str, int]:
    out: dict[str, int] = {}
    for mode in RECOMPUTE:
        other = with_recompute(config, mode)
        stages = range(config.parallel.pipeline)
        out[mode] = max(
            stage_memory(other, facts, shape, micro, stage).activations for stage in stages
        )
    return out
