"""A rollout rank: starts an engine and serves the trainer's requests until it is told to leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.cluster.exit_code_file import read_exit_code
from passk_fast.config import RunConfig
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.messages import (
    End,
    Prepare,
    Reply,
    Request,
    Sample,
    Start,
    TakeWeights,
    decode_request,
    encode_reply,
)
from passk_fast.errors import ExitCode, LostRankError, PasskError
from passk_fast.model.shape import ModelShape
from passk_fast.rollout.collect import samples_of
from passk_fast.rollout.engine_protocol import Engine, OpenWeights
from passk_fast.rollout.groups import GroupTracker
from passk_fast.rollout.make import make_engine
from passk_fast.rollout.verdict import Verify
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.rollout.wire import encode_samples
from passk_fast.tasks import Verifier
from passk_fast.weights.layout import Spec
from passk_fast.weights.megatron import Layout
from passk_fast.weights.mesh import TrainerMesh
from passk_fast.weights.sync import WeightSync

_EXIT_CODE_WAIT_S = 1.0
"""How long the exit code of a trainer that has left may take to be seen on shared storage."""


def serve(
    config: RunConfig, bridge: Bridge, device: str, stop_wanted: Callable[[], bool]
) -> ExitCode:
    """Serve until the trainer ends; its exit code. LostRankError when it went without a word.

    `stop_wanted` says whether a signal told this rank to stop; every reply passes that on.
    """
    server = Server(
        config,
        bridge,
        device,
        start_engine=partial(start_engine, config, device),
        verify=Verifier(config.data, always_process=config.rollout.verify_processes > 0),
        stop_wanted=stop_wanted,
    )
    try:
        return server.run()
    except LostRankError:
        code = _exit_code_of_trainer(Path(config.output_dir))
        if code is None:
            raise
        return code
    finally:
        server.close()


def _exit_code_of_trainer(folder: Path) -> ExitCode | None:
    """A trainer writes its exit code before it leaves: its connections close after that."""
    deadline = time.monotonic() + _EXIT_CODE_WAIT_S
    while (code := read_exit_code(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return code


@dataclass(frozen=True, kw_only=True)
class StartedEngine:
    """An engine on a model folder, and the shape of the folder's model."""

    engine: Engine
    shape: ModelShape


def start_engine(config: RunConfig, device: str, model_dir: str) -> StartedEngine:
    """vLLM on this side's ranks. A collective over them; ConfigError where it does not fit."""
    shape = ModelShape.read(model_dir)
    engine = make_engine(
        config, model_dir, rank=dist.get_rank(), world_size=dist.get_world_size(), device=device
    )
    return StartedEngine(engine=engine, shape=shape)


class Server:
    """One rollout rank."""

    def __init__(
        self,
        config: RunConfig,
        bridge: Bridge,
        device: str,
        *,
        start_engine: Callable[[str], StartedEngine],
        verify: Verify,
        stop_wanted: Callable[[], bool],
    ) -> None:
        """`start_engine` is given the model folder of the Start request."""
        self._config, self._bridge, self._device = config, bridge, device
        self._start_engine, self._verify, self._stop_wanted = start_engine, verify, stop_wanted
        self._started: StartedEngine | None = None
        self._pool: VerifierPool | None = None
        self._sync: WeightSync | None = None
        self._opened: OpenWeights | None = None

    @property
    def engine(self) -> Engine:
        """The engine of the Start request."""
        assert self._started is not None, "Start comes first"
        return self._started.engine

    def run(self) -> ExitCode:
        """Serve requests until End; its code. A PasskError goes to the trainer before it is raised.

        LostRankError when the trainer is gone.
        """
        while True:
            request = decode_request(self._bridge.receive(0, idle=True))
            if isinstance(request, End):
                return ExitCode(request.code)
            try:
                reply = self._serve(request)
            except PasskError as error:
                # The trainer may have met the same error and be gone.
                with suppress(LostRankError):
                    self._reply(Reply(error=int(error.exit_code), message=str(error)))
                raise
            self._reply(replace(reply, stop=self._stop_wanted()))

    def close(self) -> None:
        """End the verifier processes."""
        if self._pool is not None:
            self._pool.__exit__()

    def _reply(self, reply: Reply) -> None:
        self._bridge.send({0: encode_reply(reply)})

    def _serve(self, request: Request) -> Reply:
        match request:
            case Start():
                self._start(request)
            case Prepare():
                self._prepare(request)
            case TakeWeights():
                self._take_weights(request)
            case Sample():
                return self._sample(request)
        return Reply()

    def _start(self, request: Start) -> None:
        self._started = self._start_engine(request.model_dir)
        if self.engine.tensor_rank == 0:
            self._pool = VerifierPool.of(self._verify, self._config.rollout)

    def _prepare(self, request: Prepare) -> None:
        assert self._started is not None, "Start comes first"
        bridge = self._bridge
        layout = Layout.of(
            self._started.shape,
            TrainerMesh.of(self._config.parallel, bridge.num_trainers),
            bridge.rank,
            Spec(request.spec),
        )
        self._sync = WeightSync.for_run(
            self._config,
            layout,
            bridge.rollout_mesh(self._config.rollout.tensor),
            torch.device(self._device),
            bridge.group,
        )
        self._opened = self.engine.open_parameters()
        self._sync.check(self._opened.targets)

    def _take_weights(self, request: TakeWeights) -> None:
        assert self._sync is not None, "Prepare comes first"
        opened = self._opened or self.engine.open_parameters()
        self._opened = None
        self._sync.run({}, opened.targets)
        if request.verify:
            self._sync.verify({}, opened.targets)
        self.engine.close_parameters(opened, probe=request.verify)

    def _sample(self, request: Sample) -> Reply:
        rows = request.zero_advantage_rows
        tracker = GroupTracker(
            request.prompts,
            request.num_rollouts,
            self._verify,
            pool=self._pool,
            zero_advantage_rows=None if rows is None else np.array(rows),
            judge_truncated=self._config.rollout.truncated == "judge",
        )
        start = time.perf_counter()
        self.engine.stream(request.prompt_ids, tracker, seed=request.seed, prompt_keys=request.keys)
        is_head = self.engine.tensor_rank == 0
        return Reply(
            engine_s=time.perf_counter() - start,
            verify_s=tracker.seconds,
            prompt_tokens=tracker.prompt_tokens,
            cached_tokens=tracker.cached_tokens,
            samples=encode_samples(samples_of(tracker)).tobytes() if is_head else b"",
        )
