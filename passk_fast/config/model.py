"""The policy model, its warm start, and how the trainer is split over ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import require, require_finite, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Shape of a model made from scratch, used when `model.path` is empty."""

    architecture: Literal["qwen2", "qwen3", "llama", "qwen3_moe"] = "qwen3"
    """The model's Hugging Face architecture."""
    num_layers: int = 4
    """Number of transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 256
    """Width of the gated MLP, or of each expert in a mixture of experts."""
    num_experts: int = 0
    """Number of experts per layer, with architecture = "qwen3_moe"."""
    experts_per_token: int = 0
    """Number of experts that each token is sent to."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int = 2
    """Number of key and value heads (grouped-query attention)."""
    head_dim: int = 32
    """Channels per attention head."""
    tie_embeddings: bool = True
    """Whether the output layer shares the weight of the input embedding."""
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
        require(
            self.head_dim % 2 == 0,
            f"model.shape.head_dim must be even, got {self.head_dim}: rotary embeddings turn "
            "channels in pairs.",
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
    """Hugging Face model folder with config.json, safetensors and tokenizer. Empty makes a new
    random model of model.shape, with a character tokenizer for the task, in the run folder."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    """Shape of the new model when model.path is empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of parameters and activations. Gradients are always accumulated in float32."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised steps on responses before reinforcement learning: of a file, or solutions of
    generated tasks."""

    steps: int = 0
    """Number of supervised optimizer steps. 0 turns the warm start off."""
    data: str = ""
    """Responses to learn from: a JSONL or Parquet file, or a folder saved by `datasets`, with
    `prompt` (text, or chat messages for the model's template) and `response` (text; the end token
    is added). Only responses are trained. Empty takes solutions of the generated task."""
    batch_size: int = 128
    """Number of problems per step: rows of `data`, in another order every epoch, or freshly
    generated ones, disjoint from the evaluation split."""
    lr: float = 2e-3
    """Peak learning rate, constant after the warm-up."""
    lr_warmup_steps: int = 30
    """Steps of the linear learning-rate warm-up."""
    cache_dir: str = "runs/cache"
    """Folder that keeps warm-started models, keyed by everything that determines them."""

    def __post_init__(self) -> None:
        require_finite("warm_start", self)
        require_not_negative("warm_start", steps=self.steps, lr_warmup_steps=self.lr_warmup_steps)
        require_positive("warm_start", batch_size=self.batch_size, lr=self.lr)
        require(
            not self.data or self.steps > 0,
            f"warm_start.data = {self.data!r} has no effect with warm_start.steps = 0: set the "
            "number of supervised steps, or remove the file.",
        )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the trainer is split over ranks. World size = tensor x pipeline x context x data, where
    the number of data-parallel ranks follows from the others."""

    tensor: int = 1
    """Number of tensor-parallel ranks. Above 1 sequence parallelism is on."""
    pipeline: int = 1
    """Number of pipeline stages."""
    virtual_pipeline: int = 1
    """Number of model chunks per pipeline stage. Above 1 the interleaved schedule is used."""
    context: int = 1
    """Number of context-parallel ranks. Each holds a part of every sequence."""
    expert: int = 1
    """Number of expert-parallel ranks of a mixture of experts. Each holds whole experts."""
    expert_tensor: int = 1
    """Number of ranks that each expert's matrices are split over."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation (checkpointing) in the backward pass. "selective" recomputes core
    attention, "full" recomputes whole layers."""
    distributed_optimizer: bool = True
    """Shards the optimizer state over data-parallel ranks (ZeRO-1)."""
    check_replicas_every: int = 100
    """Steps between two comparisons of the weights of data-parallel replicas, by checksum; a
    difference ends the run with exit code 30. 0: never."""

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
            self.check_replicas_every >= 0,
            "parallel.check_replicas_every must be 0 (never) or more, got "
            f"{self.check_replicas_every}.",
        )
        require(
            self.virtual_pipeline == 1 or self.pipeline > 1,
            f"parallel.virtual_pipeline = {self.virtual_pipeline} needs parallel.pipeline > 1, "
            f"got {self.pipeline}.",
        )

    def data(self, world_size: int) -> int:
        """Data-parallel size of `world_size` ranks; ConfigError when it is not divisible."""
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
