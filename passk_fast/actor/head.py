"""The last stage without its output layer: hidden states for the loss kernels instead of logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from passk_fast.config import RunConfig


def uses_fused_head(config: RunConfig, device: str) -> bool:
    """Whether the loss is computed from hidden states: asked for, or "auto" on a GPU."""
    if config.lm_head_loss == "auto":
        return device == "cuda" and importlib.util.find_spec("triton") is not None
    return config.lm_head_loss == "fused"


def _unwrapped(model: Any) -> Any:
    while hasattr(model, "module"):
        model = model.module
    return model


@contextmanager
def hidden_output(model: Any) -> Iterator[Tensor | None]:
    """Inside, a GPTModel of the last stage returns hidden states [1, T / tp, H], not logits.

    Yields the output layer's weight [V / tp, H] (the embedding's where they are tied); None on
    stages that have no output layer, which stay as they are.
    """
    inner = _unwrapped(model)
    if not getattr(inner, "post_process", False):
        yield None
        return
    layer = inner.output_layer
    tied = inner.share_embeddings_and_output_weights
    weight = inner.shared_embedding_or_output_weight() if tied else layer.weight
    layer.forward = lambda hidden, **_: (hidden, None)  # shadows the class's method
    try:
        yield weight
    finally:
        del layer.forward
