"""What the ranks of a pool run: one engine a process, kept between calls."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from passk_fast.config import AlgorithmConfig, ModelConfig, RolloutConfig, RunConfig
from passk_fast.data.types import Prompt, Rollout, RolloutGroup, SampleRequest
from passk_fast.errors import PasskError
from passk_fast.model.shape import ModelShape
from passk_fast.rollout.collect import CollectStats, collect_groups
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.vllm.engine import RolloutEngine
from passk_fast.weights.hf import HFReader
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.placement import Tensors, rollout_side

_RUNNING: dict[str, Any] = {"key": None, "engine": None}


def start(folder: str, tensor: int, *, routing_replay: Any = "off", **rollout: Any) -> None:
    """An engine on the weights of `folder`; replaces the one before unless it is the same."""
    key = (folder, tensor, routing_replay, *sorted(rollout.items()))
    if _RUNNING["key"] == key:
        return
    if _RUNNING["engine"] is not None:
        _RUNNING["engine"].close()
    _RUNNING.update(key=None, engine=None)
    limits = {"max_prompt_tokens": 16, "max_response_tokens": 24, "kv_cache_gib": 0.25}
    config = RunConfig(
        model=ModelConfig(path=folder),
        rollout=RolloutConfig(tensor=tensor, **{**limits, **rollout}),
        algorithm=AlgorithmConfig(routing_replay=routing_replay),
    )
    started = RolloutEngine(
        config, folder, rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu"
    )
    _RUNNING.update(key=key, engine=started)


def engine() -> RolloutEngine:
    """The running one."""
    running: RolloutEngine = _RUNNING["engine"]
    return running


def parts() -> dict[str, Any]:
    """Names of the parts of vLLM that rollout.cpu_fast_path replaces."""
    from vllm import ir

    llm = engine().llm
    (sampler,) = llm.collective_rpc(lambda worker: worker.model_runner.sampler.topk_topp_sampler)
    return {
        "scheduler": type(llm.llm_engine.engine_core.engine_core.scheduler).__name__,
        "sampler": sampler.forward.__qualname__,
        "norms": ir.ops.rms_norm.get_priority(),
    }


def start_error(folder: str, tensor: int, **rollout: Any) -> str:
    """The user's message of a start that must fail."""
    return _message(start, folder, tensor, **rollout)


def sample(prompts: list[list[int]], **options: Any) -> list[list[Rollout]]:
    return engine().sample(prompts, **options)


def sample_error(prompts: list[list[int]], **options: Any) -> str:
    return _message(sample, prompts, **options)


def load(folder: str) -> None:
    """New weights for the running engine, from a Hugging Face folder."""
    _RUNNING["key"] = None

    running, reader = engine(), HFReader(folder)
    tensors = Tensors.of(ModelShape.read(folder))
    side = rollout_side(tensors, RolloutMesh(world=running.world_size, tensor=running.tensor_size))
    opened = running.open_parameters()
    for tensor, param, r0, r1, c0, c1, row, col in side.of_rank(running.rank).tolist():
        target = opened.targets[side.names[param]]
        matrix = target.view(-1, target.shape[-1] if target.ndim > 1 else 1)
        part = reader.read_part(tensors.name(tensor), r0, r1, c0, c1)
        matrix[row : row + r1 - r0, col : col + c1 - c0].copy_(part)
    running.close_parameters(opened, probe=True)


def sleep_and_wake() -> None:
    engine().sleep()
    engine().wake_up()


def collect(request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
    return collect_groups(engine(), request, engine().tokenizer, count_a)


def collect_with_a(request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
    """As `collect`, with a reward of 0 or 1."""
    return collect_groups(engine(), request, engine().tokenizer, has_a)


def streamed(
    prompts: list[list[int]],
    num_rollouts: int,
    seed: int,
    temperature: float,
    length: int | None = None,
) -> list[Rollout]:
    """All responses in order, sampled as training does; of a forced length, if one is given."""
    names = [Prompt(id=str(i), text="", answer="", task="t") for i in range(len(prompts))]
    tracker = GroupTracker(names, num_rollouts, has_a)
    if length is not None:
        engine().forced_length = lambda *_: length
    try:
        engine().stream(
            prompts,
            tracker,
            seed=seed,
            prompt_keys=range(len(prompts)),
            temperature=temperature,
        )
    finally:
        engine().forced_length = None
    return [rollout for group in tracker.rollouts for rollout in group]


def collect_error(request: SampleRequest) -> str:
    return _message(collect, request)


def count_a(prompt: Prompt, text: str) -> float:
    """A verifier: the share of a's in the response; raises on an empty one."""
    return text.count("a") / len(text)


def has_a(prompt: Prompt, text: str) -> float:
    """A verifier: whether an a is in the response."""
    return float("a" in text.replace("<pad>", ""))


def _message(function: Any, *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except PasskError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
