"""Makes the engine that samples: the one place of a run that names an implementation."""

from __future__ import annotations

from passk_fast.config import RunConfig
from passk_fast.rollout.engine_protocol import Engine


def make_engine(
    config: RunConfig, model_dir: str, *, rank: int, world_size: int, device: str
) -> Engine:
    """This rank's part of an engine on the weights of `model_dir`. A collective over all ranks.

    `device` is "cpu" or "cuda". ConfigError where the configuration does not fit the ranks, the
    model or the memory.
    """
    from passk_fast.rollout.vllm.engine import RolloutEngine

    return RolloutEngine(config, model_dir, rank=rank, world_size=world_size, device=device)
