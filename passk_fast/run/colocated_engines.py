"""Engines that share their ranks, and on a GPU their memory, with the trainer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.config import RunConfig
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.errors import ExitCode
from passk_fast.rollout.collect import CollectStats, collect_groups
from passk_fast.rollout.engine_protocol import Engine
from passk_fast.rollout.make import make_engine
from passk_fast.rollout.verdict import Verify
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.tasks import Verifier
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.sync import WeightSync

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ColocatedEngines:
    """One rank's engine inside the trainer's own process."""

    stop_wanted = False

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        verify: Verify,
        *,
        pool: VerifierPool | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`pool`: verifier processes; None verifies in this process. `group`: all ranks over gloo,
        for sampling during training; None is the default group."""
        self._config, self._engine = config, engine
        self._tokenizer, self._verify = tokenizer, verify
        self._pool, self._group = pool, group
        self._sync: WeightSync | None = None

    @classmethod
    def of_run(
        cls, config: RunConfig, mesh: Mesh, model_dir: str, tokenizer: PreTrainedTokenizerBase
    ) -> ColocatedEngines:
        """As the configuration says, on the ranks of the trainer. A collective."""
        engine = make_engine(
            config, model_dir, rank=mesh.rank, world_size=mesh.world_size, device=mesh.device
        )
        settings = config.rollout
        verifier = Verifier(config.data, always_process=settings.verify_processes > 0)
        pool = group = None
        if engine.tensor_rank == 0:
            pool = VerifierPool.of(verifier, settings)
        if settings.max_off_policy_steps:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout_s))
        return cls(config, engine, tokenizer, verifier, pool=pool, group=group)

    @property
    def data_size(self) -> int:
        return self._engine.data_size

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        return collect_groups(
            self._engine,
            request,
            self._tokenizer,
            self._verify,
            pool=self._pool,
            group=self._group,
            judge_truncated=self._config.rollout.truncated == "judge",
        )

    def weight_sync(self, actor: Actor) -> WeightSync:
        """From the actor's shards to the engine's; planned once."""
        if self._sync is None:
            mesh = RolloutMesh(world=actor.mesh.world_size, tensor=self._engine.tensor_size)
            self._sync = WeightSync.for_run(
                self._config, actor.layout, mesh, actor.mesh.torch_device
            )
        return self._sync

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        sync = self.weight_sync(actor)
        opened, weights = self._engine.open_parameters(), actor.parameters()
        sync.run(weights, opened.targets)
        if verify:
            sync.verify(weights, opened.targets)
        self._engine.close_parameters(opened, probe=verify)

    def sleep(self) -> None:
        self._engine.sleep()

    def wake_up(self) -> None:
        self._engine.wake_up()

    def leave(self, code: ExitCode | None) -> None:
        """End the verifier processes."""
        if self._pool is not None:
            self._pool.__exit__()
