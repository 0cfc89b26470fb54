"""What the probe finds out about a model on a mesh; plain numbers that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


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
    costs: dict[str, dict[str, Costs]]
    """By recompute mode, then "one", "two", "first", "last" (`probe.layer_costs`)."""
    logits_head: int
    """Peak bytes of the loss from logits; 0 where the loss does not make any."""

    def stage(self, index: int, stages: int) -> StageBytes:
        """Of pipeline stage `index` of `stages`."""
        if index == 0:
            return self.stages[0]
        return self.stages[-1] if index == stages - 1 else self.stages[1]

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What `to_json` made, after a journey as JSON (which turns integer keys into text)."""
        costs = {
            mode: {
                name: Costs(**{**c, "sent": {int(k): v for k, v in c["sent"].items()}})
                for name, c in runs.items()
            }
            for mode, runs in found["costs"].items()
        }
        stages = tuple(StageBytes(**s) for s in found["stages"])
        return cls(stages=stages, costs=costs, logits_head=found["logits_head"])
