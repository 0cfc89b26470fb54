"""The whole configuration of a run: one tree of frozen dataclasses, no torch.

`config_file.py` reads it from TOML and the command line. A rule inside one section lives in its
`__post_init__`; a rule between sections lives in `RunConfig.__post_init__`.
"""

from passk_fast.config.algorithm import AlgorithmConfig, OptimConfig, ScheduleConfig
from passk_fast.config.checks import require, require_positive
from passk_fast.config.data import (
    BenchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    MazeConfig,
)
from passk_fast.config.model import ModelConfig, ParallelConfig, ShapeConfig, WarmStartConfig
from passk_fast.config.rollout import RolloutConfig
from passk_fast.config.run import RunConfig

__all__ = [
    "AlgorithmConfig",
    "BenchConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "MazeConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "RolloutConfig",
    "RunConfig",
    "ScheduleConfig",
    "ShapeConfig",
    "WarmStartConfig",
    "require",
    "require_positive",
]
