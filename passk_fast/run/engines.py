"""The engines as the loop sees them: prompts in, groups out, weights in between.

Two layouts: `ColocatedEngines`, where every trainer rank holds a part of an engine, and the
disaggregated `RemoteEngines`, where engines have ranks of their own.
"""

from __future__ import annotations

from typing import Protocol

from passk_fast.actor.actor import Actor
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.errors import ExitCode
from passk_fast.rollout.collect import CollectStats


class Engines(Protocol):
    """All trainer ranks call every method together."""

    @property
    def data_size(self) -> int:
        """Engines that sample in parallel."""

    @property
    def stop_wanted(self) -> bool:
        """Whether a rank that is no trainer was told by a signal to stop; known on rank 0."""

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        """As `collect_groups`; may run in another thread during training."""

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        """Hand over the actor's weights, shard by shard; `verify` compares checksums."""

    def sleep(self) -> None:
        """Make room for the trainer where memory is shared."""

    def wake_up(self) -> None:
        """Undo `sleep`, if it was called; weights must follow."""

    def leave(self, code: ExitCode | None) -> None:
        """The run ends with this code; None: with an error."""


class WeightHandover:
    """Hands the actor's weights to the engines, verified as rollout.verify_weights says."""

    def __init__(self, engines: Engines, actor: Actor, verify_weights: str) -> None:
        """`verify_weights`: "always", "first" (once per process) or "never"."""
        self._engines, self._actor = engines, actor
        self._verify_weights = verify_weights
        self._is_first = True

    def __call__(self) -> None:
        """Wake the engines and give them the weights as they are now."""
        wanted = self._verify_weights
        verify = wanted == "always" or (wanted == "first" and self._is_first)
        self._engines.wake_up()
        self._engines.take_weights(self._actor, verify=verify)
        self._is_first = False
