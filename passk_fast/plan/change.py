"""The smallest change that makes a configuration fit, tried in order of what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import floor

from passk_fast.config import RolloutConfig, RunConfig
from passk_fast.errors import ConfigError
from passk_fast.plan.facts import RECOMPUTE, with_recompute
from passk_fast.plan.fit import Model, memory_on
from passk_fast.plan.hardware import Gpu
from passk_fast.plan.memory import Memory, shortcomings
from passk_fast.plan.worker import Prober

Change = tuple[str, RunConfig, int]
"""The change in words, the changed configuration and the number of GPUs."""
_MOST_GPUS = 4096


def smallest_change(config: RunConfig, model: Model, gpu: Gpu, gpus: int, prober: Prober) -> str:
    """A sentence with the first change that fits: one setting, then several, then more GPUs."""

    def memory(other: RunConfig, count: int) -> Memory | None:
        try:
            return memory_on(other, model, gpu, count, prober)[0]
        except ConfigError:
            return None

    for words, other, count in _changes(config, gpus, memory):
        found = memory(other, count)
        if found is not None and not shortcomings(other, found):
            return f"Smallest change that fits: {words}."
    return f"No mesh up to {_MOST_GPUS} GPUs was found that fits."


def _changes(
    config: RunConfig, gpus: int, memory: Callable[[RunConfig, int], Memory | None]
) -> Iterator[Change]:
    singles = list(_cheap(config))
    yield from ((words, other, gpus) for words, other in singles)
    for words, other in [("", config), *singles]:
        yield from _with_share(words, other, gpus, memory)
    frugal_words, frugal = _frugal(config)
    yield from _with_share(frugal_words, frugal, gpus, memory)
    count = gpus
    while count <= _MOST_GPUS:
        more = f"--gpus {count}" if count > gpus else ""
        if more:
            yield more, config, count
            yield from _with_share(_join(more, frugal_words), frugal, count, memory)
        for words, other in _meshes(config, count):
            yield _join(more, words), other, count
            yield from _with_share(_join(more, words), other, count, memory)
            words, other = _join(more, words, frugal_words), _frugal(other)[1]
            yield from _with_share(words, other, count, memory)
        count *= 2


def _join(*words: str) -> str:
    return ", ".join(w for w in words if w)


def _cheap(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """One setting that leaves the mesh as it is."""
    for mode in RECOMPUTE[RECOMPUTE.index(config.parallel.recompute) + 1 :]:
        yield f'parallel.recompute = "{mode}"', with_recompute(config, mode)
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    tokens = config.micro_batch_tokens // 2
    while tokens >= longest:
        yield f"micro_batch_tokens = {tokens}", replace(config, micro_batch_tokens=tokens)
        tokens //= 2
    if not config.rollout.sleep and not config.rollout.max_off_policy_steps:
        rollout = replace(config.rollout, sleep=True)
        yield "rollout.sleep = true", replace(config, rollout=rollout)
    if config.lm_head_loss == "unfused":
        yield 'lm_head_loss = "fused"', replace(config, lm_head_loss="fused")
    if not config.parallel.distributed_optimizer:
        parallel = replace(config.parallel, distributed_optimizer=True)
        yield "parallel.distributed_optimizer = true", replace(config, parallel=parallel)
    for rollout in _larger_engines(config.rollout):
        yield f"rollout.tensor = {rollout.tensor}", replace(config, rollout=rollout)


def _larger_engines(rollout: RolloutConfig) -> Iterator[RolloutConfig]:
    for tensor in (2, 4, 8, 16):
        if tensor > rollout.tensor and rollout.dedicated_ranks % tensor == 0:
            yield replace(rollout, tensor=tensor)


def _frugal(config: RunConfig) -> tuple[str, RunConfig]:
    """Everything that saves memory without another mesh."""
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    words = []
    if config.parallel.recompute != "full":
        config, words = with_recompute(config, "full"), ['parallel.recompute = "full"']
    if config.micro_batch_tokens > longest:
        config = replace(config, micro_batch_tokens=longest)
        words.append(f"micro_batch_tokens = {longest}")
    if not config.rollout.sleep and not config.rollout.max_off_policy_steps:
        config = replace(config, rollout=replace(config.rollout, sleep=True))
        words.append("rollout.sleep = true")
    return ", ".join(words), config


def _with_share(
    words: str, config: RunConfig, gpus: int, memory: Callable[[RunConfig, int], Memory | None]
) -> Iterator[Change]:
    """The same with the engine's share of memory as large as the trainer leaves it."""
    found = memory(config, gpus)
    if found is None:
        return
    free = found.capacity - (found.rollout_peak - found.awake)
    free -= 2 * config.rollout.sync_mib * 2**20
    share = floor(100 * free / found.capacity) / 100
    if 0 < share <= 0.95 and share != config.rollout.gpu_memory_utilization:
        rollout = replace(config.rollout, gpu_memory_utilization=share)
        setting = f"rollout.gpu_memory_utilization = {share:g}"
        yield _join(words, setting), replace(config, rollout=rollout), gpus
        for larger in _larger_engines(rollout):
            other = replace(config, rollout=larger)
            yield _join(words, setting, f"rollout.tensor = {larger.tensor}"), other, gpus


def _meshes(config: RunConfig, gpus: int) -> Iterator[tuple[str, RunConfig]]:
    """Meshes that cut the model further, one size at a time."""
    parallel = config.parallel
    for size in _doubled(parallel.expert, min(128, gpus)):
        larger = replace(parallel, expert=size)
        yield f"parallel.expert = {size}", replace(config, parallel=larger)
    for size in _doubled(parallel.tensor, min(8, gpus)):
        larger = replace(parallel, tensor=size)
        yield f"parallel.tensor = {size}", replace(config, parallel=larger)
    for size in _doubled(parallel.pipeline, gpus):
        larger = replace(parallel, pipeline=size)
        yield f"parallel.pipeline = {size}", replace(config, parallel=larger)


def _doubled(size: int, most: int) -> Iterator[int]:
    """2 x size, 4 x size, ... up to `most`."""
    while (size := 2 * size) <= most:
        yield size
