"""Rules of the configuration: each refuses with the field's name, and stops at its own border."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from passk_fast.config import (
    AlgorithmConfig,
    BenchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogprobGapConfig,
    MazeConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    ShapeConfig,
    WarmStartConfig,
)
from passk_fast.errors import ConfigError

Options = Mapping[str, Any]

# (section, what is refused, words of the message, the nearest thing that is not)
SECTION_RULES: list[tuple[type, Options, str, Options]] = [
    (AlgorithmConfig, {"num_rollouts": 1, "k": 1}, "num_rollouts", {"num_rollouts": 2, "k": 1}),
    (AlgorithmConfig, {"k": 0}, "algorithm.k must be between 1", {"k": 1}),
    (AlgorithmConfig, {"k": 17, "estimator": "maxrl"}, "num_rollouts = 16, got 17", {"k": 15}),
    (AlgorithmConfig, {"k": 16}, "Take k < N", {"k": 16, "estimator": "pkpo_s"}),
    (AlgorithmConfig, {"estimator": "grpo"}, "ignores k", {"estimator": "grpo", "k": 1}),
    (AlgorithmConfig, {"flip_negatives": 1.0}, "flip_negatives", {"flip_negatives": 0.99}),
    (AlgorithmConfig, {"flip_negatives": -0.1}, "flip_negatives", {"flip_negatives": 0.0}),
    (
        AlgorithmConfig,
        {"match_norm_k": 2},
        "has no effect without",
        {"match_norm_k": 2, "match_norm": "passk"},
    ),
    (AlgorithmConfig, {"minibatches": 0}, "algorithm.minibatches", {"minibatches": 1}),
    (AlgorithmConfig, {"max_zero_advantage_steps": -1}, "0 or more", {}),
    (AlgorithmConfig, {"balance_coef": -0.1}, "balance_coef", {"balance_coef": 0.1}),
    (
        AlgorithmConfig,
        {"balance_bias_rate": 0.1, "routing_replay": "replay"},
        "Use only one of them",
        {"balance_bias_rate": 0.1, "routing_replay": "measure"},
    ),
    (LogprobGapConfig, {"max": -1.0}, "logprob_gap.max must be 0 or more", {"max": 1.0}),
    (LogprobGapConfig, {"mean": 0.0}, "logprob_gap.mean must be positive", {"mean": 0.01}),
    (LogprobGapConfig, {"at_quantile": 0.0}, "logprob_gap.at_quantile", {"at_quantile": 1.0}),
    (LogprobGapConfig, {"quantile": 1.0}, "between 0 and 1, for", {"quantile": 0.999}),
    (LogprobGapConfig, {"bad_steps": -1}, "logprob_gap.bad_steps", {"bad_steps": 1}),
    (
        LogprobGapConfig,
        {"ends_run": "never", "bad_steps": 2},
        "bad_steps = 2 has no effect",
        {"ends_run": "never"},
    ),
    (OptimConfig, {"lr": 0.0}, "optim.lr must be positive", {"lr": 1e-12}),
    (OptimConfig, {"eps": 0.0}, "optim.eps", {}),
    (OptimConfig, {"max_bad_steps": 0}, "optim.max_bad_steps", {"max_bad_steps": 1}),
    (OptimConfig, {"beta1": 1.0}, "optim.beta1 must be in", {"beta1": 0.999}),
    (OptimConfig, {"beta2": -0.1}, "optim.beta2 must be in", {"beta2": 0.0}),
    (
        OptimConfig,
        {"min_lr_ratio": 1.5},
        "optim.min_lr_ratio",
        {"min_lr_ratio": 1.0, "schedule": "cosine"},
    ),
    (OptimConfig, {"lr_warmup_steps": -1}, "lr_warmup_steps", {"lr_warmup_steps": 0}),
    (OptimConfig, {"grad_clip": -1.0}, "optim.grad_clip", {"grad_clip": 0.0}),
    (RolloutConfig, {"tensor": 0}, "rollout.tensor must be positive", {"tensor": 1}),
    (RolloutConfig, {"temperature": 0.0}, "rollout.temperature", {"temperature": 0.1}),
    (RolloutConfig, {"stop": ("a", "")}, "at least one character", {"stop": ("a", "b")}),
    (RolloutConfig, {"stop": ("a", "a")}, "names 'a' twice", {"stop": ("a",)}),
    (RolloutConfig, {"stop_token_ids": (3, -1)}, "0 or more, got -1", {"stop_token_ids": (3, 0)}),
    (RolloutConfig, {"stop_token_ids": (3, 3)}, "names 3 twice", {"stop_token_ids": (3,)}),
    (RolloutConfig, {"dynamic_sampling": 0.5}, "1 \\(off\\) or more", {"dynamic_sampling": 1.0}),
    (RolloutConfig, {"max_off_policy_steps": 2}, "must be 0 or 1", {"max_off_policy_steps": 1}),
    (
        RolloutConfig,
        {"dedicated_ranks": 3, "tensor": 2, "max_off_policy_steps": 1},
        "must be a multiple of rollout.tensor",
        {"dedicated_ranks": 4, "tensor": 2, "max_off_policy_steps": 1},
    ),
    (
        RolloutConfig,
        {"dedicated_ranks": 2},
        "each side would idle",
        {"dedicated_ranks": 2, "max_off_policy_steps": 1},
    ),
    (RolloutConfig, {"dedicated_ranks": -1}, "dedicated_ranks must be 0 or more", {}),
    (RolloutConfig, {"verify_processes": -1}, "verify_processes", {"verify_processes": 0}),
    (
        RolloutConfig,
        {"gpu_memory_utilization": 1.1},
        "gpu_memory_utilization",
        {"gpu_memory_utilization": 1.0},
    ),
    (ParallelConfig, {"tensor": 0}, "parallel.tensor must be positive", {"tensor": 3}),
    (
        ParallelConfig,
        {"virtual_pipeline": 2},
        "needs parallel.pipeline > 1",
        {"virtual_pipeline": 2, "pipeline": 2},
    ),
    (ShapeConfig, {"head_dim": 0}, "model.shape.head_dim", {"head_dim": 2}),
    (ShapeConfig, {"num_kv_heads": 3}, "must be a multiple of", {"num_kv_heads": 4}),
    (
        ShapeConfig,
        {"num_experts": 4},
        "they belong to 'qwen3_moe'",
        {"architecture": "qwen3_moe", "num_experts": 4, "experts_per_token": 1},
    ),
    (
        ShapeConfig,
        {"architecture": "qwen3_moe", "num_experts": 4, "experts_per_token": 5},
        r"experts_per_token \(5\) must be between 1",
        {"architecture": "qwen3_moe", "num_experts": 4, "experts_per_token": 4},
    ),
    (WarmStartConfig, {"steps": -1}, "warm_start.steps", {"steps": 0}),
    (WarmStartConfig, {"data": "x"}, "warm_start.data = 'x'", {"data": "x", "steps": 1}),
    (WarmStartConfig, {"batch_size": 0}, "warm_start.batch_size", {"batch_size": 1}),
    (MazeConfig, {"train_sizes": ()}, "train_sizes must name at least one", {"train_sizes": (5,)}),
    (MazeConfig, {"train_sizes": (8,)}, "odd sizes from 5 to 21, got 8", {"train_sizes": (7,)}),
    (MazeConfig, {"test_sizes": (23,)}, "odd sizes from 5 to 21", {"test_sizes": (21,)}),
    (MazeConfig, {"test_per_size": 0}, "data.maze.test_per_size", {"test_per_size": 1}),
    (DataConfig, {"curriculum": 1.0}, "data.curriculum", {"curriculum": 0.95}),
    (EvalConfig, {"every": -1}, "eval.every", {"every": 0}),
    (EvalConfig, {"top_p": 0.0}, "eval.top_p", {"top_p": 1.0}),
    (EvalConfig, {"temperature": -1.0}, "eval.temperature", {"temperature": 0.0}),
    (CheckpointConfig, {"every": -1}, "checkpoint.every", {"every": 0}),
    (CheckpointConfig, {"keep": 0}, "checkpoint.keep", {"keep": 1}),
    (OptimConfig, {"spike_factor": 1.0}, "optim.spike_factor must be 0 or above 1", {"lr": 1e-3}),
    (OptimConfig, {"spike_factor": -1.0}, "optim.spike_factor must be", {"spike_factor": 1.5}),
    (
        OptimConfig,
        {"spike_factor": 0.0, "skip_spikes": True},
        "optim.skip_spikes has no effect",
        {"spike_factor": 0.0},
    ),
    (CheckpointConfig, {"keep_every": -20}, "keep_every must be 0 or more", {"keep_every": 0}),
    (CheckpointConfig, {"keep_every": 30}, "multiple of checkpoint.every = 20", {"keep_every": 40}),
    (CheckpointConfig, {"keep_every": 1, "every": 0}, "checkpoint.every = 0", {"every": 0}),
    (BenchConfig, {"steps": 0}, "bench.steps", {"steps": 1}),
    (BenchConfig, {"accuracy": 1.1}, "bench.accuracy", {"accuracy": 1.0}),
    (
        BenchConfig,
        {"random_weights": True},
        "bench.random_weights needs bench.decode = false",
        {"random_weights": True, "decode": False},
    ),
]

SCHEDULE_RULES: list[tuple[Options, str, Options]] = [
    ({"ks": (1, 2)}, "ks has no effect with kind = 'constant'", {}),
    ({"kind": "linear", "ks": (4,)}, "one number of steps", {"ks": (4,), "steps": (9,)}),
    ({"kind": "linear", "ks": (4, 8), "steps": (9,)}, "one last k", {"ks": (4,), "steps": (9,)}),
    ({"kind": "phases", "ks": (4,), "steps": (9,)}, "two phases", {"ks": (4, 1), "steps": (9, 0)}),
    (
        {"kind": "phases", "ks": (4, 1), "steps": (9,)},
        "one number for each of the 2 ks",
        {"ks": (4, 1), "steps": (9, 9)},
    ),
    (
        {"kind": "phases", "ks": (4, 1), "steps": (9, 0), "repeat": True},
        "a phase of no steps is never reached",
        {"ks": (4, 1), "steps": (9, 9), "repeat": True},
    ),
    (
        {"kind": "phases", "ks": (4, 1), "steps": (9, 9), "estimators": ("passk",)},
        "estimators must be empty or have one name",
        {"ks": (4, 1), "steps": (9, 9), "estimators": ("passk", "grpo")},
    ),
    ({"kind": "plateau", "ks": (4,)}, "two phases", {"ks": (4, 1)}),
    (
        {"kind": "plateau", "ks": (4, 1), "steps": (1, 1)},
        "steps has no effect with kind = 'plateau'",
        {"ks": (4, 1)},
    ),
    ({"kind": "plateau", "ks": (4, 1), "patience": 0}, "patience", {"ks": (4, 1), "patience": 1}),
    ({"kind": "adaptive", "ks": (1,)}, "must hold two ks", {"ks": (1, 4)}),
    (
        {"kind": "adaptive", "ks": (1, 4), "share": 1.0},
        "share must be between 0 and 1",
        {"ks": (1, 4), "share": 0.9},
    ),
    (
        {"kind": "by_accuracy", "ks": (1, 4), "repeat": True},
        "repeat has no effect",
        {"ks": (1, 4)},
    ),
    (
        {"kind": "by_accuracy", "ks": (1, 4), "scale_lr": "peak"},
        "scale_lr has no effect",
        {"ks": (1, 4), "tau": 0.3},
    ),
]


def run(**sections: Any) -> RunConfig:
    """A run of a model from a folder, so that no rule of model.shape matters."""
    return RunConfig(**{"model": ModelConfig(path="x"), **sections})


# (sections of a run that do not go together, words of the message, what mends it)
RUN_RULES: dict[str, tuple[Options, str, Options]] = {
    "steps": ({"steps": 0}, "steps must be positive", {"steps": 1}),
    "minibatches": (
        {"prompts_per_step": 10, "algorithm": AlgorithmConfig(minibatches=4)},
        r"prompts_per_step \(10\) must be a multiple of algorithm.minibatches \(4\)",
        {"prompts_per_step": 12},
    ),
    "a micro-batch shorter than a sequence": (
        {"micro_batch_tokens": 1023},
        r"micro_batch_tokens \(1023\) must hold the longest sequence",
        {"micro_batch_tokens": 1024},
    ),
    "a new model with too few positions": (
        {"model": ModelConfig(shape=ShapeConfig(max_positions=1000))},
        r"model.shape.max_positions \(1000\)",
        {"model": ModelConfig(shape=ShapeConfig(max_positions=1024))},
    ),
    "too few evaluation responses": (
        {"eval": EvalConfig(num_rollouts=4)},
        r"eval.num_rollouts \(4\) must be at least algorithm.k \(8\)",
        {"eval": EvalConfig(num_rollouts=8)},
    ),
    "experts of responses that a string ended": (
        {
            "rollout": RolloutConfig(stop=("a",)),
            "algorithm": AlgorithmConfig(routing_replay="replay"),
        },
        "vLLM returns no experts of a response that a string ended",
        {
            "rollout": RolloutConfig(stop_token_ids=(3,)),
            "algorithm": AlgorithmConfig(routing_replay="replay"),
        },
    ),
    "dropping what the KL term needs": (
        {
            "loss": PolicyLoss(kl_coef=0.1),
            "algorithm": AlgorithmConfig(skip_zero_advantage="on"),
        },
        "that term depends on sequences with zero advantage too",
        {"algorithm": AlgorithmConfig(skip_zero_advantage="auto")},
    ),
    "a router bias that the sampler does not know": (
        {"algorithm": AlgorithmConfig(balance_bias_rate=0.1)},
        "the sampler does not know the router bias",
        {
            "algorithm": AlgorithmConfig(balance_bias_rate=0.1),
            "logprob_gap": LogprobGapConfig(max=1.0),
            "loss": PolicyLoss(tis_clip=2.0),
        },
    ),
    "sequence ratios over a split context": (
        {"loss": PolicyLoss(ratio="sequence"), "parallel": ParallelConfig(context=2)},
        "context parallelism splits a response",
        {"parallel": ParallelConfig(context=1)},
    ),
    "random tokens have no experts": (
        {
            "bench": BenchConfig(decode=False),
            "algorithm": AlgorithmConfig(routing_replay="replay"),
        },
        "random tokens have no experts",
        {"algorithm": AlgorithmConfig(routing_replay="off")},
    ),
    "a phase after the last step": (
        {
            "steps": 10,
            "algorithm": AlgorithmConfig(
                schedule=ScheduleConfig(kind="phases", ks=(4, 1), steps=(10, 0))
            ),
        },
        "phase 2 of 2 begins at step 10, but the run has steps = 10",
        {"steps": 11},
    ),
    "a last k after the last step": (
        {
            "steps": 20,
            "algorithm": AlgorithmConfig(
                schedule=ScheduleConfig(kind="linear", ks=(1,), steps=(20,))
            ),
        },
        "the last k is reached at step 20",
        {"steps": 21},
    ),
    "a plateau that cannot come in time": (
        {
            "steps": 50,
            "algorithm": AlgorithmConfig(schedule=ScheduleConfig(kind="plateau", ks=(4, 1))),
        },
        "the last one begins at step 50 at the earliest",
        {"steps": 51},
    ),
}


@pytest.mark.parametrize(
    ("section", "wrong", "words", "right"),
    SECTION_RULES,
    ids=[f"{rule[0].__name__} {dict(rule[1])}" for rule in SECTION_RULES],
)
def test_a_rule_of_a_section(section: type, wrong: Options, words: str, right: Options) -> None:
    with pytest.raises(ConfigError, match=words):
        section(**wrong)
    section(**right)


@pytest.mark.parametrize(("wrong", "words", "right"), SCHEDULE_RULES)
def test_a_rule_of_the_schedule(wrong: Options, words: str, right: Options) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.schedule.*{words}"):
        ScheduleConfig(**wrong)
    kind = wrong.get("kind", "constant")
    ScheduleConfig(kind=kind, **right)


@pytest.mark.parametrize("name", RUN_RULES)
def test_a_rule_between_sections(name: str) -> None:
    wrong, words, mended = RUN_RULES[name]
    with pytest.raises(ConfigError, match=words):
        run(**wrong)
    run(**{**wrong, **mended})


@pytest.mark.parametrize(
    ("parallel", "world", "data"),
    [({}, 8, 8), ({"tensor": 2}, 8, 4), ({"tensor": 2, "pipeline": 2, "context": 2}, 8, 1)],
)
def test_data_parallel_ranks_are_what_is_left(parallel: Options, world: int, data: int) -> None:
    assert ParallelConfig(**parallel).data(world) == data


@pytest.mark.parametrize(
    ("parallel", "world", "words"),
    [
        ({"tensor": 3}, 8, r"World size 8 is not divisible by .* = 3 x 1 x 1 = 3\."),
        ({"expert": 4, "pipeline": 3}, 6, r"parallel\.expert .* = 4 x 1 x 3 = 12\."),
    ],
)
def test_a_world_that_is_not_divisible(parallel: Options, world: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParallelConfig(**parallel).data(world)


def test_what_needs_zero_advantage_sequences_keeps_them() -> None:
    assert run().skips_zero_advantage
    assert not run(algorithm=AlgorithmConfig(skip_zero_advantage="off")).skips_zero_advantage
    for needs_them in (
        {"loss": PolicyLoss(entropy_coef=0.01)},
        {"loss": PolicyLoss(kl_coef=0.01)},
        {"algorithm": AlgorithmConfig(balance_coef=0.01)},
    ):
        assert run(**needs_them).trains_zero_advantage
        assert not run(**needs_them).skips_zero_advantage


def test_sections_cannot_be_changed_afterwards() -> None:
    config = run()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]
