"""Prompts, evaluation, checkpoints and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """The maze task (arXiv 2508.10751, section 3.1) when prompts are generated."""

    train_sizes: tuple[int, ...] = (9, 11, 13, 15)
    """Odd sizes of training mazes."""
    train_per_size: int = 10_000
    """Training mazes of each size."""
    test_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Odd sizes of held-out mazes."""
    test_per_size: int = 100
    """Held-out mazes of each size (75 where the size is 7 and this is 100, as in the paper)."""
    style: Literal["prose", "compact"] = "prose"
    """prose: instructions and `<answer>` tags, as the paper; compact: grid and moves alone."""
    lenient: bool = False
    """Verify as the paper's released code does (see docs/maze.md)."""

    def __post_init__(self) -> None:
        for name in ("train_sizes", "test_sizes"):
            sizes = getattr(self, name)
            require(len(sizes) > 0, f"data.maze.{name} must name at least one size.")
            for size in sizes:
                require(
                    5 <= size <= 21 and size % 2 == 1,
                    f"data.maze.{name} must hold odd sizes from 5 to 21, got {size}.",
                )
        require_positive(
            "data.maze", train_per_size=self.train_per_size, test_per_size=self.test_per_size
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from."""

    train: str = ""
    """JSONL or Parquet file, or a folder saved by `datasets`; empty: mazes made by `maze`."""
    test: str = ""
    """Held-out prompts, same formats; empty with `train` set: no evaluation."""
    maze: MazeConfig = field(default_factory=MazeConfig)
    """The maze generator and verifier."""
    seed: int = 0
    """Seed of generated data and of the order of prompts."""
    curriculum: float = 0.0
    """In [0, 0.95]: pass over a prompt, until the next epoch, with this chance times the chance
    that its group would be dead, from what was seen of it before. Above 0 it changes the
    distribution of prompts that is trained on."""

    def __post_init__(self) -> None:
        require(
            0 <= self.curriculum <= 0.95,
            f"data.curriculum must be in [0, 0.95], got {self.curriculum}.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation: during training a quick look, afterwards by `passk-fast eval`."""

    every: int = 10
    """Steps between evaluations; 0 evaluates only before and after training."""
    num_prompts: int = 64
    """Held-out prompts, the first of the split."""
    num_rollouts: int = 16
    """Responses a prompt; pass@k needs k of them at least."""
    temperature: float = 1.0
    """`passk-fast eval`: sampling temperature; training looks with rollout.temperature."""
    top_p: float = 0.95
    """`passk-fast eval`: nucleus sampling; training looks without it."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"eval.every must be 0 or more, got {self.every}.")
        require(self.temperature >= 0, f"eval.temperature must be 0 or more: {self.temperature}.")
        require(0 < self.top_p <= 1, f"eval.top_p must be in (0, 1], got {self.top_p}.")
        require_positive("eval", num_prompts=self.num_prompts, num_rollouts=self.num_rollouts)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and resuming."""

    every: int = 20
    """Steps between checkpoints; the last step is always saved. 0 saves only the last."""
    keep: int = 2
    """How many of the newest checkpoints to keep."""
    resume: bool = True
    """Continue from the newest good checkpoint in the run folder."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"checkpoint.every must be 0 or more, got {self.every}.")
        require_positive("checkpoint", keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What `passk-fast bench` runs; training ignores it."""

    task: Literal["synthetic", "data"] = "synthetic"
    """synthetic: random prompts, lengths and verdicts, no data set; data: the run's own."""
    steps: int = 5
    """Steps that are measured."""
    warmup: int = 1
    """Steps before them that are not."""
    accuracy: float = 0.5
    """Chance of a synthetic verdict of 1."""
    prompt_tokens: int = 0
    """Tokens of a synthetic prompt; 0: rollout.max_prompt_tokens."""
    response_mean: float = 0.0
    """Mean of log-normal response lengths in tokens; 0: half of rollout.max_response_tokens."""
    response_sigma: float = 0.6
    """Their spread: deviation of the logarithm."""
    lengths_file: str = ""
    """JSONL with "tokens" a line (a run's samples): lengths are drawn from it instead."""
    decode: bool = True
    """Sample with vLLM; without, random tokens of these lengths, and no engine."""
    random_weights: bool = False
    """Train random weights: model.path need hold config.json alone; needs decode = false."""

    def __post_init__(self) -> None:
        require_positive("bench", steps=self.steps)
        require(self.warmup >= 0, f"bench.warmup must be 0 or more, got {self.warmup}.")
        require(0 <= self.accuracy <= 1, f"bench.accuracy must be in [0, 1], got {self.accuracy}.")
        for name in ("prompt_tokens", "response_mean", "response_sigma"):
            value = getattr(self, name)
            require(value >= 0, f"bench.{name} must be 0 or more, got {value}.")
        require(
            not (self.random_weights and self.decode),
            "bench.random_weights needs bench.decode = false: vLLM reads its weights from a file.",
        )
