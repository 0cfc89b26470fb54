"""A rollout rank: starts an engine, then serves the trainer's orders until it is told to leave."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.cluster.exit_code_file import read_exit_code
from passk_fast.config import RunConfig
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.messages import (
    Answer,
    End,
    Order,
    Prepare,
    Sample,
    Start,
    TakeWeights,
    decode_order,
    encode_answer,
)
from passk_fast.errors import ExitCode, LostRankError, PasskError
from passk_fast.model.shape import ModelShape
from passk_fast.rollout.collect import samples_of
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.rollout.vllm.engine import RolloutEngine
from passk_fast.rollout.vllm.parameters import OpenParameters
from passk_fast.rollout.wire import encode_samples
from passk_fast.tasks import verify
from passk_fast.weights.layout import Spec
from passk_fast.weights.megatron import Layout
from passk_fast.weights.mesh import TrainerMesh
from passk_fast.weights.sync import WeightSync

_LAST_WORDS_S = 1.0
"""How long the exit code of a trainer that has left may take to be seen on shared storage."""


class StopSignal(Protocol):
    """What tells this process to stop (run.signals.StopFlag)."""

    raised: bool
    """Whether SIGTERM or SIGINT has come."""


def serve(config: RunConfig, bridge: Bridge, device: str, stop: StopSignal) -> ExitCode:
    """Serve until the trainer ends; its exit code. LostRankError when it left without one."""
    server = Server(config, bridge, device, stop)
    try:
        return server.run()
    except LostRankError:
        code = _last_words(Path(config.output_dir))
        if code is None:
            raise
        return code
    finally:
        server.close()


def _last_words(folder: Path) -> ExitCode | None:
    """A trainer writes its exit code before it leaves: its connections close after that."""
    deadline = time.monotonic() + _LAST_WORDS_S
    while (code := read_exit_code(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return code


class Server:
    """One rollout rank."""

    def __init__(self, config: RunConfig, bridge: Bridge, device: str, stop: StopSignal) -> None:
        self.config, self.bridge, self.device, self.stop = config, bridge, device, stop
        self._verify = partial(verify, config=config.data)
        self._engine: RolloutEngine | None = None
        self._shape: ModelShape | None = None
        self._pool: VerifierPool | None = None
        self._sync: WeightSync | None = None
        self._opened: OpenParameters | None = None

    @property
    def engine(self) -> RolloutEngine:
        assert self._engine is not None, "Start comes first"
        return self._engine

    def run(self) -> ExitCode:
        """StepActions until the last; a PasskError is told to the trainer before it is raised."""
        while True:
            order = decode_order(self.bridge.receive(0, idle=True))
            if isinstance(order, End):
                return ExitCode(order.code)
            try:
                answer = self._answer(order)
            except PasskError as error:
                # The trainer may have met the same error and be gone.
                with suppress(LostRankError):
                    self._reply(Answer(error=int(error.exit_code), message=str(error)))
                raise
            self._reply(answer)

    def close(self) -> None:
        """End the verifier processes."""
        if self._pool is not None:
            self._pool.__exit__()

    def _reply(self, answer: Answer) -> None:
        self.bridge.send({0: encode_answer(answer)})

    def _answer(self, order: Order) -> Answer:
        answer = Answer()
        if isinstance(order, Start):
            self._start(order)
        elif isinstance(order, Prepare):
            self._prepare(order)
        elif isinstance(order, TakeWeights):
            self._take_weights(order)
        elif isinstance(order, Sample):
            answer = self._sample(order)
        return replace(answer, stop=self.stop.raised)

    def _start(self, order: Start) -> None:
        self._shape = ModelShape.read(order.model_dir)
        self._engine = RolloutEngine(
            self.config,
            order.model_dir,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            device=self.device,
        )
        settings = self.config.rollout
        if settings.verify_processes and self._engine.tensor_rank == 0:
            self._pool = VerifierPool(
                self._verify, settings.verify_processes, settings.verify_timeout_s
            )

    def _prepare(self, order: Prepare) -> None:
        bridge = self.bridge
        assert self._shape is not None, "Start comes first"
        layout = Layout.of(
            self._shape,
            TrainerMesh.of(self.config.parallel, bridge.num_trainers),
            bridge.rank,
            Spec(order.spec),
        )
        self._sync = WeightSync.for_run(
            self.config,
            layout,
            bridge.rollout_mesh(self.config.rollout.tensor),
            torch.device(self.device),
            bridge.group,
        )
        self._opened = self.engine.open_parameters()
        self._sync.check(self._opened.targets)

    def _take_weights(self, order: TakeWeights) -> None:
        assert self._sync is not None, "Prepare comes first"
        opened = self._opened or self.engine.open_parameters()
        self._opened = None
        self._sync.run({}, opened.targets)
        if order.verify:
            self._sync.verify({}, opened.targets)
        self.engine.close_parameters(opened, probe=order.verify)

    def _sample(self, order: Sample) -> Answer:
        watch = GroupTracker(
            order.prompts,
            order.num_rollouts,
            self._verify,
            pool=self._pool,
            zero_advantage_rows=None
            if order.zero_advantage_rows is None
            else np.array(order.zero_advantage_rows),
        )
        start = time.perf_counter()
        self.engine.stream(order.prompt_ids, watch, seed=order.seed, prompt_keys=order.keys)
        is_head = self.engine.tensor_rank == 0
        return Answer(
            engine_s=time.perf_counter() - start,
            verify_s=watch.seconds,
            prompt_tokens=watch.prompt_tokens,
            cached_tokens=watch.cached_tokens,
            samples=encode_samples(samples_of(watch)).tobytes() if is_head else b"",
        )
