"""Which layers of a model route tokens to experts, and how their choices are stored.

The experts that a sequence's tokens were sent to are an array [tokens - 1, M, K]: M mixture layers
in the model's order, K experts a token. The last token has none: sampling never runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passk_fast.errors import ConfigError

_COUNTS = ("num_experts", "num_local_experts")
"""Names of the number of experts in Hugging Face's configs: Qwen3-MoE, Mixtral."""


def num_experts(hf: Any) -> int:
    """Experts of a mixture layer; 0 for a dense model."""
    return int(next((n for name in _COUNTS if (n := getattr(hf, name, None))), 0))


def moe_layers(hf: Any) -> list[int]:
    """Indices of the layers that are mixtures of experts; none in a dense model."""
    if not num_experts(hf):
        return []
    dense = getattr(hf, "mlp_only_layers", None) or ()
    step = getattr(hf, "decoder_sparse_step", None) or 1
    return [i for i in range(hf.num_hidden_layers) if i not in dense and (i + 1) % step == 0]


def stored_dtype(hf: Any) -> np.dtype[Any]:
    """The smallest type that holds every expert's index: K bytes a token and layer up to 256."""
    return np.dtype(np.uint8 if num_experts(hf) <= 256 else np.int16)


def check_routing(hf: Any, mode: str) -> None:
    """ConfigError unless the model has experts or `mode` (algorithm.routing_replay) is "off"."""
    if mode != "off" and not moe_layers(hf):
        raise ConfigError(
            f"algorithm.routing_replay = {mode!r} has no effect: the model ({hf.model_type}) is no "
            "mixture of experts. Take 'off'."
        )
