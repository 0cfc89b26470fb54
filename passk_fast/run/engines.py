"""The engines as the loop sees them: prompts in, groups out, weights in between.

Two layouts: `Colocated`, where every trainer rank holds a part of an engine, and `disaggregated.RemoteEngines`,
where engines have ranks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import ExitCode
from passk_fast.rollout.collect import CollectStats, collect_groups
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.rollout.vllm.engine import RolloutEngine
from passk_fast.weights.mesh import RolloutMesh
from passk_fast.weights.sync import WeightSync

Groups = tuple[list[RolloutGroup], CollectStats]


class Engines(Protocol):
    """All trainer ranks call every method together."""

    @property
    def data_size(self) -> int:
        """Engines that sample side by side."""

    @property
    def stop_wanted(self) -> bool:
        """Whether a rank that is no trainer was told by a signal to stop; known on rank 0."""

    def sample(self, draw: SampleRequest) -> Groups:
        """As `collect_groups`; may run in a thread beside training."""

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        """Hand over the actor's weights, shard by shard; `verify` compares checksums."""

    def sleep(self) -> None:
        """Make room for the trainer where memory is shared."""

    def wake_up(self) -> None:
        """Undo `sleep`; weights must follow."""

    def leave(self, code: ExitCode | None) -> None:
        """The run ends with this code; None: with an error."""


class Colocated:
    """One rank's engine inside the trainer's own process."""

    stop_wanted = False

    def __init__(
        self,
        config: RunConfig,
        engine: RolloutEngine,
        tokenizer: Any,
        verify: Callable[[Prompt, str], float],
        *,
        pool: VerifierPool | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`pool`: verifier processes; None verifies in this process. `group`: all ranks over gloo,
        for sampling beside training; None is the default group."""
        self.config, self.engine, self.tokenizer, self.verify = config, engine, tokenizer, verify
        self.pool, self.group = pool, group
        self.sync: WeightSync | None = None

    @property
    def data_size(self) -> int:
        return self.engine.data_size

    def sample(self, draw: SampleRequest) -> Groups:
        return collect_groups(
            self.engine, draw, self.tokenizer, self.verify, pool=self.pool, group=self.group
        )

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        if self.sync is None:
            mesh = RolloutMesh(world=actor.mesh.world_size, tensor=self.engine.tensor_size)
            self.sync = WeightSync.for_run(self.config, actor.layout, mesh, actor.mesh.torch_device)
        opened, weights = self.engine.open_parameters(), actor.parameters()
        self.sync.run(weights, opened.targets)
        if verify:
            self.sync.verify(weights, opened.targets)
        self.engine.close_parameters(opened, probe=verify)

    def sleep(self) -> None:
        self.engine.sleep()

    def wake_up(self) -> None:
        self.engine.wake_up()

    def leave(self, code: ExitCode | None) -> None:
        if self.pool is not None:
            self.pool.__exit__()
