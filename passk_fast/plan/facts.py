"""What the probe finds out about a model on a mesh; plain numbers that travel as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Self, TypedDict

from passk_fast.config import RunConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
"""Values of parallel.recompute, from the most memory to the least."""


def with_recompute(config: RunConfig, mode: Recompute) -> RunConfig:
    """The same run with another `parallel.recompute`."""
    return replace(config, parallel=replace(config.parallel, recompute=mode))


@dataclass(frozen=True, kw_only=True)
class StageBytes:
    """What a rank of one pipeline stage holds between steps."""

    weights: int
    """Parameters, not bytes."""
    expert_weights: int
    """Those of experts among them."""
    parameters: int
    gradients: int
    main: int
    """float32 copy of the weights that the optimizer keeps, or its shard; 0 in float32."""
    moments: int

    @property
    def optimizer(self) -> int:
        """Main weights and both moments."""
        return self.main + self.moments

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one micro-batch through a chunk."""

    saved: int
    """Bytes alive between forward and backward, the chunk's output included."""
    peak: int
    """Bytes alive at most during forward and backward."""
    element_bytes: int
    element_bytes_forward: int
    sent: dict[int, int] = field(default_factory=dict)
    """Sent by a rank in collectives, by size of the group."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that needs Megatron."""

    stages: tuple[StageBytes, ...]
    """First, middle (with more than two stages) and last pipeline stage."""
    costs: Mapping[str, Mapping[str, Costs]]
    """By recompute mode, then "one", "two", "first", "last" (`probe.layer_costs`)."""
    logits_head: int
    """Peak bytes of the loss from logits; 0 where the loss does not make any."""

    def stage(self, index: int, stages: int) -> StageBytes:
        """Of pipeline stage `index` of `stages`."""
        if index == 0:
            return self.stages[0]
        return self.stages[-1] if index == stages - 1 else self.stages[1]

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        found: _FactsJson = json.loads(text)
        costs = {
            mode: {name: _costs(run) for name, run in runs.items()}
            for mode, runs in found["costs"].items()
        }
        stages = tuple(StageBytes(**stage) for stage in found["stages"])
        return cls(stages=stages, costs=costs, logits_head=found["logits_head"])


class _StageJson(TypedDict):
    weights: int
    expert_weights: int
    parameters: int
    gradients: int
    main: int
    moments: int


class _CostsJson(TypedDict):
    saved: int
    peak: int
    element_bytes: int
    element_bytes_forward: int
    sent: dict[str, int]


class _FactsJson(TypedDict):
    stages: list[_StageJson]
    costs: dict[str, dict[str, _CostsJson]]
    logits_head: int


def _costs(run: _CostsJson) -> Costs:
    """JSON has turned integer keys into text."""
    return Costs(
        saved=run["saved"],
        peak=run["peak"],
        element_bytes=run["element_bytes"],
        element_bytes_forward=run["element_bytes_forward"],
        sent={int(size): amount for size, amount in run["sent"].items()},
    )
