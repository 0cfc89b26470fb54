"""The whole configuration of a run: one tree of frozen dataclasses, imported without torch.

file.py reads it from TOML and the command line. A rule inside one section lives in its
`__post_init__`; a rule between sections lives in `RunConfig`. The loss section is the kernels' own
`PolicyLoss`.
"""

from passk_fast.config.algorithm import AlgorithmConfig, OptimConfig, ScheduleConfig
from passk_fast.config.checks import require, require_positive
from passk_fast.config.data import (
    BenchConfig,
    ChatConfig,
    CheckpointConfig,
    ColumnsConfig,
    DataConfig,
    EvalConfig,
    MazeConfig,
    PuzzlesConfig,
)
from passk_fast.config.logprob_gap import LogprobGapConfig
from passk_fast.config.model import ModelConfig, ParallelConfig, ShapeConfig, WarmStartConfig
from passk_fast.config.rollout import RolloutConfig
from passk_fast.config.run import RunConfig
from passk_fast.kernels.options import PolicyLoss

__all__ = [
    "AlgorithmConfig",
    "BenchConfig",
    "ChatConfig",
    "CheckpointConfig",
    "ColumnsConfig",
    "DataConfig",
    "EvalConfig",
    "LogprobGapConfig",
    "MazeConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "PolicyLoss",
    "PuzzlesConfig",
    "RolloutConfig",
    "RunConfig",
    "ScheduleConfig",
    "ShapeConfig",
    "WarmStartConfig",
    "require",
    "require_positive",
]
