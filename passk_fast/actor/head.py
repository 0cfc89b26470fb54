"""The last stage without its output layer: hidden states for the loss kernels instead of logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from torch import Tensor, nn

from passk_fast.config import RunConfig


def uses_fused_head(config: RunConfig, device: str) -> bool:
    """Whether the loss is computed from hidden states: asked for, or "auto" on a GPU."""
    if config.lm_head_loss == "auto":
        return device == "cuda" and importlib.util.find_spec("triton") is not None
    return config.lm_head_loss == "fused"


class _OutputLayer(Protocol):
    """Megatron's output layer."""

    weight: Tensor
    forward: Callable[..., tuple[Tensor, None]]


class _LastStage(Protocol):
    """What is asked of a GPTModel that has an output layer."""

    output_layer: _OutputLayer
    share_embeddings_and_output_weights: bool

    def shared_embedding_or_output_weight(self) -> Tensor:
        """The weight that the embedding and the output layer share."""


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside Megatron's data-parallel and mixed-precision wrappers."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


@contextmanager
def hidden_output(model: nn.Module) -> Iterator[Tensor | None]:
    """The fused loss takes hidden states, but Megatron's GPTModel returns logits.

    Inside, a model of the last stage returns hidden states [1, T / tp, H]. Yields the output
    layer's weight [V / tp, H] (the embedding's where they are tied); None on stages that have no
    output layer, which stay as they are.
    """
    inner = _unwrapped(model)
    if not getattr(inner, "post_process", False):
        yield None
        return
    stage = cast(_LastStage, inner)
    layer = stage.output_layer
    tied = stage.share_embeddings_and_output_weights
    weight = stage.shared_embedding_or_output_weight() if tied else layer.weight
    layer.forward = lambda hidden, **_: (hidden, None)  # shadows the class's method
    try:
        yield weight
    finally:
        del layer.forward
