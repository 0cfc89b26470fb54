"""What ranks run for test_weight_sync: an actor and an engine in one process, and the sync."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist

from passk_fast.config import ModelConfig, ParallelConfig, RolloutConfig, RunConfig
from passk_fast.errors import PasskError
from passk_fast.model.shape import ModelShape

_RUNNING: dict[str, Any] = {}


def start(folder: str, parallel: dict[str, Any], tensor: int, sync_mib: int = 256) -> None:
    """An actor and an engine on the weights of `folder`."""
    warnings.simplefilter("ignore")

    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh
    from passk_fast.rollout.vllm.engine import RolloutEngine
    from passk_fast.run.colocated_engines import ColocatedEngines

    if _RUNNING:
        _RUNNING["engine"].close()
        _RUNNING.clear()
    drop_mesh()
    config = RunConfig(
        model=ModelConfig(path=folder),
        parallel=ParallelConfig(**parallel),
        rollout=RolloutConfig(
            tensor=tensor,
            max_prompt_tokens=48,
            max_response_tokens=16,
            kv_cache_gib=0.25,
            sync_mib=sync_mib,
        ),
    )
    mesh = make_mesh(config.parallel, "cpu")
    actor = Actor(config, ModelShape.read(folder), mesh)
    actor.load_folder(folder)
    engine = RolloutEngine(
        config, folder, rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu"
    )
    engines = ColocatedEngines(config, engine, engine.tokenizer, lambda *_: 0.0)
    _RUNNING.update(engines=engines, actor=actor, engine=engine)


def sync(folder: str) -> None:
    """The actor takes the weights of `folder` and hands them to the engine."""
    _RUNNING["actor"].load_folder(folder)
    _RUNNING["engines"].take_weights(_RUNNING["actor"], verify=True)


def sample(prompts: list[list[int]]) -> list[list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    """(tokens, log-probs) of two seeded responses to each prompt."""
    groups = _RUNNING["engine"].sample(prompts, num_rollouts=2, seed=3)
    return [[(r.token_ids, r.logprobs) for r in group] for group in groups]


class PacksHalf:
    """A layer's way of packing its weight that halves it first."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight.data *= 0.5
        self._method.process_weights_after_loading(layer)


def packs_wrongly() -> str:
    """A sync after which one packed layer holds something else; the message."""
    actor, engine = _RUNNING["actor"], _RUNNING["engine"]
    layers: list[Any] = []

    def spoil(model: Any) -> None:
        layers.append(next(m for n, m in model.named_modules() if n.endswith("o_proj")))
        layers[0].quant_method = PacksHalf(layers[0].quant_method)

    engine.llm.apply_model(spoil)
    opened = engine.open_parameters()
    _RUNNING["engines"].weight_sync(actor).run(actor.parameters(), opened.targets)
    try:
        engine.close_parameters(opened, probe=True)
    except PasskError as error:
        return str(error)
    return ""


def largest_difference(one: Any, other: Any) -> float:
    """Between log-probs of equal tokens; infinite when tokens differ."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        for (tokens, logprobs), (others, expected) in zip(a, b, strict=True):
            if tokens != others:
                return float("inf")
            gap = (torch.tensor(logprobs) - torch.tensor(expected)).abs().max()
            worst = max(worst, float(gap))
    return worst


def start_engine_alone(folder: str, tensor: int) -> None:
    """An engine without a trainer."""
    from passk_fast.rollout.vllm.engine import RolloutEngine

    if _RUNNING:
        _RUNNING["engine"].close()
        _RUNNING.clear()
    config = RunConfig(
        model=ModelConfig(path=folder),
        rollout=RolloutConfig(
            tensor=tensor, max_prompt_tokens=48, max_response_tokens=16, kv_cache_gib=0.25
        ),
    )
    engine = RolloutEngine(
        config, folder, rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu"
    )
    _RUNNING.update(engine=engine)


def sync_from_shards(folder: str, mesh: dict[str, Any], tensor: int) -> None:
    """The engine takes the weights of `folder` from a mesh of shards that stand for a trainer."""
    from passk_fast.weights.hf import HFReader
    from passk_fast.weights.megatron import Layout, load, named_parameters
    from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
    from passk_fast.weights.sync import WeightSync
    from tests.weights.shapes import Chunk

    world, engine = dist.get_world_size(), _RUNNING["engine"]
    layout = Layout.of(ModelShape.read(folder), TrainerMesh(world=world, **mesh), dist.get_rank())
    chunk = Chunk(layout)
    load([chunk], HFReader(folder), layout)
    sync = WeightSync.of(
        layout,
        RolloutMesh(world=world, tensor=tensor),
        dtype=torch.float32,
        device=torch.device("cpu"),
        round_bytes=1 << 16,
    )
    opened, weights = engine.open_parameters(), named_parameters([chunk])
    sync.run(weights, opened.targets)
    sync.verify(weights, opened.targets)
    engine.close_parameters(opened, probe=True)
