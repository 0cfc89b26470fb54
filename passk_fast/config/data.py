"""Prompts, evaluation, checkpoints and benchmarks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import (
    require,
    require_finite,
    require_not_negative,
    require_positive,
)
from passk_fast.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """The maze task of Pass@k Training (arXiv 2508.10751, section 3.1), when prompts are
    generated."""

    train_sizes: tuple[int, ...] = (9, 11, 13, 15)
    """Sizes of the training mazes, odd numbers from 5 to 21."""
    train_per_size: int = 10_000
    """Number of training mazes per size."""
    test_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Sizes of the held-out mazes, odd numbers from 5 to 21."""
    test_per_size: int = 100
    """Number of held-out mazes per size (75 of size 7 where this is 100, as in the paper)."""
    fresh: bool = False
    """Makes the training mazes of every step when the step asks for them, so that none is trained
    on twice (small sizes run out: docs/maze.md). train_per_size then says only how many `--dry-run`
    and other checks look at."""
    style: Literal["prose", "compact"] = "prose"
    """How a maze is written: "prose" with instructions and `<answer>` tags, as in the paper;
    "compact" with only the grid and the moves."""
    lenient: bool = False
    """Verifies answers as the paper's released code does (docs/maze.md)."""

    def __post_init__(self) -> None:
        for name in ("train_sizes", "test_sizes"):
            sizes = getattr(self, name)
            require(len(sizes) > 0, f"data.maze.{name} must name at least one size.")
            for size in sizes:
                require(
                    5 <= size <= 21 and size % 2 == 1,
                    f"data.maze.{name} must hold odd sizes from 5 to 21, got {size}.",
                )
            require(
                len(set(sizes)) == len(sizes),
                f"data.maze.{name} must name each size once, got {list(sizes)}; "
                "train_per_size and test_per_size set how many mazes a size has.",
            )
        require_positive(
            "data.maze", train_per_size=self.train_per_size, test_per_size=self.test_per_size
        )


@dataclass(frozen=True, kw_only=True)
class PuzzlesConfig:
    """The task puzzles (reasoning-gym) when prompts are generated; see docs/rewards.md."""

    generators: tuple[str, ...] = ()
    """Names of generators or of whole categories (crypto, arithmetic, logic, grid, graph, search,
    sequential); empty: all."""
    train_per_generator: int = 100
    """Training puzzles of each generator, or as many as it has."""
    test_per_generator: int = 10
    """Held-out puzzles of each generator, or as many as it has."""
    difficulty: int = 0
    """Level of each generator's curriculum, from 0; its last level where it has fewer."""
    options: tuple[str, ...] = ()
    """Settings of single generators, such as "countdown.min_numbers=3"; values as JSON."""
    partial_credit: bool = False
    """Reward what reasoning-gym gives for answers that are nearly right; off: 0 or 1."""

    def __post_init__(self) -> None:
        require(
            0 <= self.difficulty <= 20,
            f"data.puzzles.difficulty must be in [0, 20], got {self.difficulty}.",
        )
        for option in self.options:
            require(
                re.fullmatch(r"\w+\.\w+=.+", option) is not None,
                "data.puzzles.options must have the form GENERATOR.SETTING=VALUE, such as "
                f"'countdown.min_numbers=3', got {option!r}.",
            )
        require_positive(
            "data.puzzles",
            train_per_generator=self.train_per_generator,
            test_per_generator=self.test_per_generator,
        )


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """What a data file calls its columns, where not by the names of these keys."""

    prompt: str = ""
    """Column with the prompt: text, or a list of chat messages {role, content}."""
    answer: str = ""
    """Column with the reference answer: text or a number."""
    task: str = ""
    """Column with the task that judges a row."""
    id: str = ""
    """Column with the row's name, text or a whole number; without one, rows are counted."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How prompts become text by the chat template of the model folder."""

    template: Literal["auto", "on", "off"] = "auto"
    """"auto" renders prompts that are chat messages and leaves text as it is; "on" renders text
    too, as one message of the user; "off" refuses messages."""
    system: str = ""
    """System message put before prompts that have none."""
    arguments: tuple[str, ...] = ()
    """Arguments of the template, such as "enable_thinking=false"; values as JSON."""

    def __post_init__(self) -> None:
        for argument in self.arguments:
            name, _, value = argument.partition("=")
            require(
                name.isidentifier() and bool(value),
                "data.chat.arguments must have the form NAME=VALUE, such as "
                f"'enable_thinking=false', got {argument!r}.",
            )
            try:
                json.loads(value)
            except ValueError:
                raise ConfigError(
                    f"data.chat.arguments: the value of {argument!r} must be JSON, such as true, 3 "
                    'or "text".'
                ) from None
        require(
            self.template != "off" or not (self.system or self.arguments),
            "data.chat.system and data.chat.arguments have no effect with data.chat.template = "
            "'off'.",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from."""

    train: str = ""
    """Training prompts (docs/data.md): a JSONL, JSON, CSV or Parquet file, a folder saved by
    `datasets`, or a data set on the Hub, OWNER/NAME[/SUBSET][:SPLIT]. Empty generates prompts by
    the task that data.generate names."""
    test: str = ""
    """Held-out prompts, in the same formats. Empty, with data.train set, means no evaluation."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Names of the columns."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """The chat template."""
    task: str = ""
    """Task that judges every row: exact, maths, code, maze, puzzles, or the dotted path to one of
    your own. Empty takes each row's column `task`."""
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    """What becomes of prompts of more than rollout.max_prompt_tokens tokens: an error before the
    first step, left out, or their last tokens kept. The number is printed."""
    verifier: str = ""
    """Reward function that judges every row, in place of the rows' tasks: "rewards.py:score" or
    "my_package.rewards:score", or several with weights, such as "rewards.py:right*0.9,
    rewards.py:short*0.1" (docs/rewards.md). Needs data.train or data.test."""
    generate: Literal["maze", "puzzles"] = "maze"
    """The task that makes the prompts where data.train and data.test name no file."""
    maze: MazeConfig = field(default_factory=MazeConfig)
    """The maze generator and verifier."""
    puzzles: PuzzlesConfig = field(default_factory=PuzzlesConfig)
    """The puzzle generators and verifier."""
    seed: int = 0
    """Seed of the generated data and of the order of prompts."""
    curriculum: float = 0.0
    """Online curriculum, in [0, 0.95]. A prompt is skipped until the next epoch with this
    probability times the probability that its group would have zero advantage, estimated from its
    earlier responses. Above 0 it changes the distribution of training prompts."""

    def __post_init__(self) -> None:
        require_finite("data", self)
        require(
            not self.verifier or bool(self.train or self.test),
            f"data.verifier = {self.verifier!r} judges the rows of data.train and data.test; set "
            "one of them. Generated prompts are judged by their own task.",
        )
        require(
            not (self.task and self.verifier),
            f"data.task = {self.task!r} and data.verifier = {self.verifier!r} both judge every "
            "row; set one of them.",
        )
        require(
            not self.task or bool(self.train or self.test),
            f"data.task = {self.task!r} is for the rows of data.train and data.test; set one of "
            "them. Generated prompts are judged by their own task.",
        )
        require(
            not (self.task and self.columns.task),
            f"data.task = {self.task!r} judges every row, so data.columns.task = "
            f"{self.columns.task!r} has no effect; set one of them.",
        )
        require(
            not self.maze.fresh or (self.generate == "maze" and not self.train),
            "data.maze.fresh makes mazes to train on, but they come from "
            f"{'data.train' if self.train else 'data.generate = ' + repr(self.generate)}: set it "
            "to false.",
        )
        require(
            not (self.maze.fresh and self.curriculum),
            f"data.curriculum = {self.curriculum} with data.maze.fresh: it learns from earlier "
            "responses to a prompt, and no fresh maze comes twice. Set one of them to 0.",
        )
        require(
            0 <= self.curriculum <= 0.95,
            f"data.curriculum must be in [0, 0.95], got {self.curriculum}.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation, during training and by `passk-fast eval`."""

    every: int = 10
    """Steps between evaluations. 0 evaluates only before and after training."""
    num_prompts: int = 64
    """Number of held-out prompts of an evaluation during training, taken from the beginning of the
    split. `passk-fast eval` takes all of them, or as many as its command line says."""
    num_rollouts: int = 16
    """Number of responses per prompt; pass@k needs at least k of them."""
    temperature: float = 1.0
    """Sampling temperature of `passk-fast eval`. Evaluations during training use
    rollout.temperature."""
    top_p: float = 0.95
    """Nucleus sampling (top-p) of `passk-fast eval`. Evaluations during training do not use it."""

    def __post_init__(self) -> None:
        require_finite("eval", self)
        require(self.every >= 0, f"eval.every must be 0 or more, got {self.every}.")
        require(
            self.temperature >= 0, f"eval.temperature must be 0 or more, got {self.temperature}."
        )
        require(0 < self.top_p <= 1, f"eval.top_p must be in (0, 1], got {self.top_p}.")
        require_positive("eval", num_prompts=self.num_prompts, num_rollouts=self.num_rollouts)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and resuming."""

    every: int = 20
    """Steps between checkpoints. The last step is always saved; 0 saves only that one."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Keeps besides these every checkpoint whose step is a multiple of this, a multiple of every. 0
    keeps none of them."""
    resume: bool = True
    """Continues from the newest intact checkpoint in the run folder; false moves what the folder
    records into a folder abandoned-N in it and starts at step 0."""

    def __post_init__(self) -> None:
        require_not_negative("checkpoint", every=self.every, keep_every=self.keep_every)
        require_positive("checkpoint", keep=self.keep)
        require(
            self.keep_every == 0 or (self.every > 0 and self.keep_every % self.every == 0),
            f"checkpoint.keep_every must be a multiple of checkpoint.every = {self.every}, which "
            f"says what is saved at all, got {self.keep_every}.",
        )


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What `passk-fast bench` runs. Training ignores it."""

    task: Literal["synthetic", "data"] = "synthetic"
    """What is sampled: "synthetic" uses random prompts, response lengths and verdicts and no data
    set; "data" uses the run's own prompts."""
    steps: int = 5
    """Number of steps that are measured."""
    warmup: int = 1
    """Number of warm-up steps before them, which are not measured."""
    accuracy: float = 0.5
    """Probability that a synthetic response is correct."""
    prompt_tokens: int = 0
    """Number of tokens in a synthetic prompt. 0 takes rollout.max_prompt_tokens."""
    response_mean: float = 0.0
    """Mean of the log-normal response lengths in tokens. 0 takes half of
    rollout.max_response_tokens."""
    response_sigma: float = 0.6
    """Standard deviation of the logarithm of response lengths."""
    lengths_file: str = ""
    """JSONL file with "tokens" on each line, such as a run's samples. Response lengths are drawn
    from it instead."""
    decode: bool = True
    """Samples with vLLM. Otherwise responses are random tokens of these lengths, and there is no
    engine."""
    random_weights: bool = False
    """Trains random weights, so that model.path needs only config.json. It needs decode = false."""

    def __post_init__(self) -> None:
        require_finite("bench", self)
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
