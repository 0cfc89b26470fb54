"""The router of a mixture of experts: Megatron's, in float32, with what we observe of it.

A router is reached as `layer.mlp.router` (`experts.moe_layers` lists them).
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.moe.router import TopKRouter


class Router(TopKRouter):
    """Top-k of a softmax over experts."""

    def __init__(self, config: Any, pg_collection: Any = None, **kwargs: Any) -> None:
        super().__init__(config=config, pg_collection=pg_collection, **kwargs)
        self.packed: Any = None
        """PackedParams of the micro-batch that the layer is computing."""
