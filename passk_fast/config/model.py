"""The policy, its warm start, and the trainer's mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Shape of a model made from scratch, used when `model.path` is empty."""

    architecture: Literal["qwen2", "qwen3", "llama", "qwen3_moe"] = "qwen3"
    """Which Hugging Face architecture the model has."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 256
    """Width of the gated MLP; of each expert of a mixture of experts."""
    num_experts: int = 0
    """Experts of a layer, with architecture = "qwen3_moe"."""
    experts_per_token: int = 0
    """Experts that a token goes through."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads (GQA)."""
    head_dim: int = 32
    """Channels a head."""
    tie_embeddings: bool = True
    """Whether the output layer shares the input embedding."""
    max_positions: int = 1024
    """Longest sequence in tokens."""

    def __post_init__(self) -> None:
        require_positive(
            "model.shape",
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.shape.num_heads ({self.num_heads}) must be a multiple of "
            f"model.shape.num_kv_heads ({self.num_kv_heads}).",
        )
        self._check_experts()

    def _check_experts(self) -> None:
        count, chosen = self.num_experts, self.experts_per_token
        if self.architecture != "qwen3_moe":
            require(
                count == chosen == 0,
                "model.shape.num_experts and model.shape.experts_per_token have no effect with "
                f"architecture = {self.architecture!r}; they belong to 'qwen3_moe'.",
            )
            return
        require(
            0 < chosen <= count,
            f"model.shape.experts_per_token ({chosen}) must be between 1 and "
            f"model.shape.num_experts ({count}).",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy that is trained."""

    path: str = ""
    """Hugging Face model folder (config.json, safetensors, tokenizer). Empty: a new random model of
    `shape` with a character tokenizer for the task, made in the run folder."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    """Shape of the new model when `path` is empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter and activation type; gradients are always accumulated in float32."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised steps on solutions before reinforcement learning (tasks that can make them)."""

    steps: int = 0
    """Supervised optimizer steps; 0 turns the warm start off."""
    batch_size: int = 128
    """Problems a step, freshly generated, disjoint from the evaluation split."""
    lr: float = 2e-3
    """Peak learning rate, constant after warm-up."""
    lr_warmup_steps: int = 30
    """Linear warm-up steps."""
    cache_dir: str = "runs/cache"
    """Where warm-started models are kept, keyed by everything that determines them."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"warm_start.steps must be 0 or more, got {self.steps}.")
        require_positive("warm_start", batch_size=self.batch_size, lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The trainer's mesh. World size = tensor x pipeline x context x data; data follows."""

    tensor: int = 1
    """Tensor-parallel ranks; above 1 sequence parallelism is on."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual_pipeline: int = 1
    """Model chunks a stage; above 1 the interleaved schedule is used."""
    context: int = 1
    """Context-parallel ranks: each holds a part of every sequence."""
    expert: int = 1
    """Expert-parallel ranks of a mixture of experts: each holds whole experts."""
    expert_tensor: int = 1
    """Ranks that an expert's matrices are cut over."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recompute: selective redoes core attention, full redoes whole layers."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""

    def __post_init__(self) -> None:
        require_positive(
            "parallel",
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=self.virtual_pipeline,
            context=self.context,
            expert=self.expert,
            expert_tensor=self.expert_tensor,
        )
        require(
            self.virtual_pipeline == 1 or self.pipeline > 1,
            f"parallel.virtual_pipeline = {self.virtual_pipeline} needs parallel.pipeline > 1, "
            f"got {self.pipeline}.",
        )

    def data(self, world_size: int) -> int:
        """Data-parallel size of `world_size` ranks; ConfigError when they do not divide."""
        product = self.tensor * self.pipeline * self.context
        require(
            world_size % product == 0,
            f"World size {world_size} is not divisible by parallel.tensor x parallel.pipeline x "
            f"parallel.context = {self.tensor} x {self.pipeline} x {self.context} = {product}.",
        )
        experts = self.expert * self.expert_tensor * self.pipeline
        require(
            world_size % experts == 0,
            f"World size {world_size} is not divisible by parallel.expert x parallel.expert_tensor "
            f"x parallel.pipeline = {self.expert} x {self.expert_tensor} x {self.pipeline} = "
            f"{experts}.",
        )
        return world_size // product
