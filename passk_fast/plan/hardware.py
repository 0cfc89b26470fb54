"""GPUs and links by data sheet, and the share of each that programs get."""

from __future__ import annotations

from dataclasses import dataclass

from passk_fast.errors import ConfigError

GIB = 2**30
RANKS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a node of eight, each with its own network card."""

    name: str
    memory_gib: float
    """What the driver lets a process use."""
    flops: float
    """bfloat16, dense, per second, by data sheet."""
    memory_bytes: float
    """Per second, by data sheet."""
    link_bytes: float
    """NVLink, per second and direction."""
    network_bytes: float = 50e9
    """A 400 Gb/s card, per second and direction."""


GPUS = {
    "h100": Gpu(name="h100", memory_gib=79.6, flops=989e12, memory_bytes=3.35e12, link_bytes=450e9),
    "h200": Gpu(name="h200", memory_gib=140.4, flops=989e12, memory_bytes=4.8e12, link_bytes=450e9),
    "b200": Gpu(
        name="b200", memory_gib=179.0, flops=2250e12, memory_bytes=7.7e12, link_bytes=900e9
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Share of the data sheet that is reached. The first two are what an H200 showed (790 TFLOP/s,
    4.3 TB/s); the others are assumed."""

    matmul: float = 0.80
    memory: float = 0.90
    attention: float = 0.50
    """Causal varlen attention, forward and backward together."""
    grouped: float = 0.50
    """Products of experts, each with the few tokens that it gets."""
    link: float = 0.75
    network: float = 0.80
    collective_s: float = 15e-6
    """Latency of a collective of a decoding step."""
    step_s: float = 2e-3
    """Scheduling, sampling and launches of a decoding step."""


RATES = Rates()

RESERVE_GIB = 3.0
"""CUDA context, NCCL and cuBLAS buffers, fragmentation; assumed."""
GRAPHS_GIB = 1.5
"""CUDA graphs of the engine, which stay while it sleeps; assumed."""


def gpu_of(name: str) -> Gpu:
    """ConfigError for a name without an entry."""
    if name not in GPUS:
        raise ConfigError(f"command line: --gpu must be one of {', '.join(GPUS)}, got {name!r}.")
    return GPUS[name]


def sides(gpus: int, rollout_ranks: int) -> tuple[int, int]:
    """(GPUs that train, GPUs that sample): the same ones, unless some hold only an engine."""
    return gpus - rollout_ranks, rollout_ranks or gpus
