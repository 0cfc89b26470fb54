"""How the experts that tokens were sent to are stored.

Those of a sequence are an array [tokens - 1, M, K]: M layers, each a mixture of experts, and K
experts a token. The last token has none: sampling never runs it through the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passk_fast.errors import ConfigError


def num_experts(hf: Any) -> int:
    """Experts of a layer, from a transformers config; 0 for a dense model."""
    return getattr(hf, "num_experts", None) or getattr(hf, "num_local_experts", None) or 0


def stored_dtype(hf: Any) -> np.dtype[Any]:
    """The smallest type that holds every expert's index: one byte up to 256 experts."""
    return np.dtype(np.uint8 if num_experts(hf) <= 256 else np.int16)


def check_routing(hf: Any, mode: str) -> None:
    """ConfigError unless the model has experts or `mode` (algorithm.routing_replay) is "off"."""
    if mode != "off" and not num_experts(hf):
        raise ConfigError(
            f"algorithm.routing_replay = {mode!r} has no effect: the model ({hf.model_type}) is no "
            "mixture of experts. Take 'off'."
        )
