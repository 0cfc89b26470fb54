"""What the ranks of a pool run for test_disaggregated: both sides of the bridge, without vLLM."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.commands.synthetic import (
    Lengths,
    NumberTokenizer,
    RandomVerifier,
    SyntheticEngine,
    prompts,
)
from passk_fast.config import (
    BenchConfig,
    ModelConfig,
    ParallelConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
)
from passk_fast.data.types import SampleRequest
from passk_fast.disaggregated.bridge import Bridge, join
from passk_fast.disaggregated.remote_engines import RemoteEngines
from passk_fast.disaggregated.rollout_server import Server, StartedEngine
from passk_fast.errors import ConfigError, ExitCode, LostRankError, PasskError
from passk_fast.weights.layout import Spec
from passk_fast.weights.megatron import Layout
from passk_fast.weights.mesh import TrainerMesh
from passk_fast.weights.placement import Tensors, rollout_side
from tests.weights.shapes import full_weights, held, model_shape

_JOINED: dict[str, Bridge] = {}
VERIFY = RandomVerifier(0.5)
LENGTHS = Lengths.of(BenchConfig(response_mean=6.0), 20)
SHAPE = model_shape("qwen3")


def enter(ranks: int) -> Bridge:
    """The bridge of this process, made once; the pool's own group makes room."""
    if not _JOINED:
        dist.destroy_process_group()
        _JOINED["bridge"] = join("cpu", 20, ranks)
    return _JOINED["bridge"]


def where(ranks: int) -> dict[str, Any]:
    """What this rank sees of its side and of the bridge."""
    bridge = enter(ranks)
    total = torch.tensor(bridge.rank)
    dist.all_reduce(total)
    everyone: list[Any] = [None] * dist.get_world_size(bridge.group)
    dist.all_gather_object(everyone, bridge.rank, group=bridge.group)
    return {
        "side": "rollout" if bridge.is_rollout else "trainer",
        "rank": (dist.get_rank(), int(os.environ["RANK"]), bridge.rank),
        "world": (dist.get_world_size(), int(os.environ["WORLD_SIZE"])),
        "sum": int(total),
        "everyone": everyone,
    }


def _config(parallel: dict[str, int], ranks: int, tensor: int) -> RunConfig:
    return RunConfig(
        device="cpu",
        model=ModelConfig(path="none"),
        parallel=ParallelConfig(**parallel),
        rollout=RolloutConfig(dedicated_ranks=ranks, tensor=tensor, max_off_policy_steps=1),
        loss=PolicyLoss(tis_clip=2.0),
    )


class FakeEngine(SyntheticEngine):
    """Random tokens, and parameters of the tiny model's rollout side."""

    opened = closed = 0

    def open_parameters(self) -> FakeEngine:
        self.opened += 1
        return self

    def close_parameters(self, opened: Any, *, probe: bool = False) -> None:
        self.closed += 1


class DamagingEngine(FakeEngine):
    """Weights that change after they have arrived: when they are looked at to be verified."""

    looks = 0

    @property
    def targets(self) -> dict[str, torch.Tensor]:
        self.looks += 1
        if self.looks == LOOK_TO_VERIFY:
            self.kept["model.layers.1.self_attn.o_proj.weight"].neg_()
        return self.kept

    @targets.setter
    def targets(self, targets: dict[str, torch.Tensor]) -> None:
        self.kept = targets


LOOK_TO_VERIFY = 3
"""The first is to check their shapes, the second to fill them."""


def start_engine(config: RunConfig, bridge: Bridge, model_dir: str) -> StartedEngine:
    """An engine that needs no model; the name of the folder says what goes wrong."""
    if model_dir == "too large":
        raise ConfigError("vLLM could not start with rollout.kv_cache_gib = 1")
    tensor, place = config.rollout.tensor, dist.get_rank()
    damages = model_dir == "damaged" and bridge.rank == bridge.rollout_ranks[-1]
    kind = DamagingEngine if damages else FakeEngine
    engine: Any = kind(LENGTHS, 50, 64, place // tensor, dist.get_world_size() // tensor)
    engine.tensor_rank, engine.tensor_size = place % tensor, tensor
    side = rollout_side(Tensors.of(SHAPE), bridge.rollout_mesh(tensor))
    shapes = side.shapes(bridge.rank)
    engine.targets = {name: torch.full(size, -1.0) for name, size in shapes.items()}
    return StartedEngine(engine=engine, shape=SHAPE)


class FakeActor:
    """Shards of the tiny model."""

    shape, transformer_engine = SHAPE, False

    def __init__(self, config: RunConfig, bridge: Bridge) -> None:
        parallel = config.parallel
        mesh = TrainerMesh(
            world=bridge.num_trainers, tensor=parallel.tensor, pipeline=parallel.pipeline
        )
        self.layout = Layout.of(SHAPE, mesh, bridge.rank, Spec.LOCAL)
        self.mesh = SimpleNamespace(torch_device=torch.device("cpu"))
        full = full_weights(self.layout.tensors)
        shards = held(self.layout.tensors, self.layout.side, bridge.rank, full)
        self.weights = {name: w.float() for name, w in shards.items()}

    def parameters(self) -> dict[str, torch.Tensor]:
        return self.weights


def serve_and_ask(
    parallel: dict[str, int], tensor: int, ranks: int, model_dir: str = "tiny"
) -> dict[str, Any]:
    """One start, two weight syncs, two rounds of sampling, the end; what each side saw."""
    bridge = enter(ranks)
    config = _config(parallel, ranks, tensor)
    try:
        if bridge.is_rollout:
            return _serve(config, bridge)
        return _ask(config, bridge, model_dir)
    except PasskError as error:
        return {"error": (type(error).__name__, str(error))}


def _serve(config: RunConfig, bridge: Bridge) -> dict[str, Any]:
    server = Server(
        config,
        bridge,
        "cpu",
        start_engine=partial(start_engine, config, bridge),
        verify=VERIFY,
        stop_wanted=lambda: bridge.rank == bridge.rollout_ranks[-1],
    )
    code = server.run()
    engine: Any = server.engine
    tensors = Tensors.of(SHAPE)
    side = rollout_side(tensors, bridge.rollout_mesh(config.rollout.tensor))
    expected = held(tensors, side, bridge.rank, full_weights(tensors))
    return {
        "code": code,
        "same": all(torch.equal(engine.targets[n].double(), w) for n, w in expected.items()),
        "opened": (engine.opened, engine.closed),
    }


def _ask(config: RunConfig, bridge: Bridge, model_dir: str) -> dict[str, Any]:
    from passk_fast.run.colocated_engines import ColocatedEngines

    tokenizer: Any = NumberTokenizer()
    remote = RemoteEngines(config, bridge, model_dir, tokenizer)
    actor: Any = FakeActor(config, bridge)
    for verify in (True, False):
        remote.take_weights(actor, verify=verify)
    questions = prompts(13, 4, 50, seed=1)
    decided = np.array([True, True, False, True])  # two wrong ones of three decide
    results = []
    for first_key, zero_advantage_rows in ((0, None), (5, decided)):
        request = SampleRequest(
            prompts=questions,
            num_rollouts=3,
            seed=7,
            first_key=first_key,
            zero_advantage_rows=zero_advantage_rows,
        )
        groups, stats = remote.sample(request)
        alone: Any = SyntheticEngine(LENGTHS, 50, 64, 0, 1)
        expected, counted = ColocatedEngines(config, alone, tokenizer, VERIFY).sample(request)
        same = [
            [(r.token_ids, r.text) for r in g.rollouts]
            == [(r.token_ids, r.text) for r in e.rollouts]
            and g.prompt == e.prompt
            and np.array_equal(g.rewards, e.rewards, equal_nan=True)
            for g, e in zip(groups, expected, strict=True)
        ]
        results.append((all(same), stats == counted, stats.aborted))
    stop = remote.stop_wanted
    remote.leave(ExitCode.PREEMPTED)
    return {"results": results, "stop": stop, "data_size": remote.data_size}


def loses_a_rank(ranks: int, dying: int) -> None:
    """Rank `dying` ends while the others wait for it."""
    bridge = enter(ranks)
    if bridge.rank == dying:
        os._exit(7)
    bridge.receive(0 if bridge.is_rollout else bridge.num_trainers, idle=True)


def waits_for_a_frozen_rank(ranks: int, timeout_s: int) -> None:
    """Rank 0, which has the store too, is stopped while the last rank waits for a request."""
    dist.destroy_process_group()
    bridge = join("cpu", timeout_s, ranks)
    if not bridge.is_rollout:
        os.kill(os.getpid(), signal.SIGSTOP)
    start = time.monotonic()
    try:
        bridge.receive(0, idle=True)
    except LostRankError as error:
        raise RuntimeError(f"{error}; found after {time.monotonic() - start:.1f} s") from error


def waits_for_a_busy_rank(ranks: int, timeout_s: int) -> bytes:
    """What an idle rank receives after three time-outs of nothing."""
    dist.destroy_process_group()
    bridge = join("cpu", timeout_s, ranks)
    if bridge.is_rollout:
        return bridge.receive(0, idle=True)
    time.sleep(3 * timeout_s)
    bridge.send({1: b"done"})
    return b""
