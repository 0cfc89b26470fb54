"""Whether a model can be divided as a configuration asks: the one home of these rules.

The run checks, the weight layout, the plan and the engine's start call it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from passk_fast.config import ParallelConfig, RunConfig, require
from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Into how many parts ranks divide a model. Context parallelism divides tokens, not weights."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    expert: int = 1
    expert_tensor: int = 1
    rollout_tensor: int = 1
    rollout_whole_experts: bool = False
    """The engine's ranks hold whole experts instead of a part of each."""

    @classmethod
    def of(cls, parallel: ParallelConfig, rollout_tensor: int = 1) -> Self:
        """As configured."""
        return cls(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual=parallel.virtual_pipeline,
            expert=parallel.expert,
            expert_tensor=parallel.expert_tensor,
            rollout_tensor=rollout_tensor,
        )


def violations(shape: ModelShape, cuts: Cuts) -> Iterator[str]:
    """Every rule that `cuts` breaks: what is divided, how many there are, and the divisor."""
    tensor, rollout = cuts.tensor, cuts.rollout_tensor
    whole = cuts.rollout_whole_experts
    stages = cuts.pipeline * cuts.virtual
    rules = [
        ("heads", shape.num_heads, "parallel.tensor", tensor),
        ("key-value heads", shape.num_kv_heads, "parallel.tensor", tensor),
        ("heads", shape.num_heads, "rollout.tensor", rollout),
        ("rows of vLLM's vocabulary", shape.engine_vocab, "rollout.tensor", rollout),
    ]
    if shape.num_experts:
        width, name = shape.expert_width, "channels of an expert"
        rules += [
            ("experts", shape.num_experts, "parallel.expert", cuts.expert),
            (name, width, "parallel.expert_tensor", cuts.expert_tensor),
            (name, width, "rollout.tensor", 1 if whole else rollout),
        ]
    else:
        rules += [
            ("channels of the MLP", shape.ffn_width, "parallel.tensor", tensor),
            ("channels of the MLP", shape.ffn_width, "rollout.tensor", rollout),
        ]
    for what, size, name, divisor in rules:
        if size % divisor:
            yield f"{size} {what} are not divisible by {name} = {divisor}"
    if shape.num_kv_heads % rollout and rollout % shape.num_kv_heads:
        yield (
            f"{shape.num_kv_heads} key-value heads are not divisible by rollout.tensor = {rollout}"
            ", nor the other way round"
        )
    if shape.num_layers % stages:
        yield (
            f"{shape.num_layers} layers are not divisible by parallel.pipeline x "
            f"parallel.virtual_pipeline = {cuts.pipeline} x {cuts.virtual} = {stages}"
        )


def check_divisible(shape: ModelShape, cuts: Cuts, source: str = "model") -> None:
    """ConfigError, beginning with `source`, that lists every rule that `cuts` breaks."""
    broken = list(violations(shape, cuts))
    require(not broken, f"{source}: {'; '.join(broken)}.")


def check_engine_ranks(ranks: int, tensor: int, what: str) -> None:
    """ConfigError unless `ranks` make up whole engines; `what` names them in the message."""
    if ranks % tensor:
        raise ConfigError(f"{ranks} {what} are not divisible by rollout.tensor = {tensor}.")


def check_fits(shape: ModelShape, config: RunConfig, source: str = "model") -> None:
    """ConfigError unless the model can be trained and sampled from as configured.

    The meshes must divide it, it must hold the longest sequence, and no option may ask for experts
    or end tokens that it does not have.
    """
    parallel, rollout = config.parallel, config.rollout
    check_divisible(shape, Cuts.of(parallel, rollout.tensor), source)
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    require(
        longest <= shape.max_positions,
        f"{source}: the model holds {shape.max_positions} positions, fewer than "
        f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}.",
    )
    beyond = next((i for i in rollout.stop_token_ids if i >= shape.vocab), None)
    require(
        beyond is None,
        f"{source}: rollout.stop_token_ids names token {beyond}, but the model's vocabulary has "
        f"{shape.vocab} tokens, 0 to {shape.vocab - 1}.",
    )
    if shape.num_experts:
        return
    ranks = parallel.expert * parallel.expert_tensor
    require(
        ranks == 1,
        f"{source}: a dense model has no experts: parallel.expert x parallel.expert_tensor = "
        f"{ranks} would have no effect. Take 1.",
    )
    require(
        not config.algorithm.balances_experts,
        f"{source}: a dense model has no experts: algorithm.balance_coef and "
        "algorithm.balance_bias_rate would have no effect. Take 0.",
    )
