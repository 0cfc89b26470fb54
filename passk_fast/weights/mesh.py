"""Where ranks stand in the trainer's and in the rollout's mesh, as far as weights care."""

from __future__ import annotations

from dataclasses import dataclass

from passk_fast.config import ParallelConfig
from passk_fast.errors import ConfigError
from passk_fast.model.divisibility import Cuts, check_engine_ranks


@dataclass(frozen=True, kw_only=True)
class TrainerMesh:
    """Megatron's default order: tensor fastest, then context and data, pipeline slowest.

    Experts have a mesh of their own over the ranks of a stage: expert tensor, then expert.
    """

    world: int
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    expert: int = 1
    expert_tensor: int = 1
    first_rank: int = 0

    @classmethod
    def of(cls, parallel: ParallelConfig, world: int) -> TrainerMesh:
        """The configured mesh over `world` trainer ranks."""
        return cls(
            world=world,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual=parallel.virtual_pipeline,
            expert=parallel.expert,
            expert_tensor=parallel.expert_tensor,
        )

    def __post_init__(self) -> None:
        for name, size in (
            ("tensor x pipeline", self.tensor * self.pipeline),
            ("expert x expert tensor x pipeline", self.expert * self.expert_tensor * self.pipeline),
        ):
            if self.world % size:
                raise ConfigError(
                    f"{self.world} trainer ranks are not divisible by {name} = {size}."
                )

    @property
    def cuts(self) -> Cuts:
        """Into how many parts the mesh divides a model."""
        return Cuts(
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual=self.virtual,
            expert=self.expert,
            expert_tensor=self.expert_tensor,
        )

    def stage(self, rank: int) -> int:
        """Pipeline stage of a rank."""
        return (rank - self.first_rank) // (self.world // self.pipeline)

    def dense(self, rank: int) -> tuple[int, int]:
        """(stage, tensor rank)."""
        return self.stage(rank), (rank - self.first_rank) % self.tensor

    def experts(self, rank: int) -> tuple[int, int, int]:
        """(stage, expert tensor rank, expert rank)."""
        within = rank - self.first_rank
        expert = within // self.expert_tensor % self.expert
        return self.stage(rank), within % self.expert_tensor, expert

    def layers(self, stage: int, num_layers: int) -> list[int]:
        """Global indices of the layers of a stage; all stages together must divide them."""
        chunks = self.pipeline * self.virtual
        assert num_layers % chunks == 0, f"{num_layers} layers on {chunks} chunks"
        size = num_layers // chunks
        return [
            (v * self.pipeline + stage) * size + i for v in range(self.virtual) for i in range(size)
        ]

    @property
    def ranks(self) -> range:
        """Global ranks of the trainer."""
        return range(self.first_rank, self.first_rank + self.world)


@dataclass(frozen=True, kw_only=True)
class RolloutMesh:
    """Consecutive blocks of `tensor` ranks; each block is an engine with a whole model."""

    world: int
    tensor: int = 1
    expert: bool = False
    """The ranks of a block hold whole experts instead of a part of each."""
    first_rank: int = 0

    def __post_init__(self) -> None:
        check_engine_ranks(self.world, self.tensor, "rollout ranks")

    @property
    def cuts(self) -> Cuts:
        """Into how many parts an engine divides a model."""
        return Cuts(rollout_tensor=self.tensor, rollout_whole_experts=self.expert)

    def tensor_rank(self, rank: int) -> int:
        """Place of a rank in its block."""
        return (rank - self.first_rank) % self.tensor

    @property
    def ranks(self) -> range:
        """Global ranks of the rollout."""
        return range(self.first_rank, self.first_rank + self.world)
