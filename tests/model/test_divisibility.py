"""Every rule of divisibility, alone and together, and what else must fit a model."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.config import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
    ShapeConfig,
)
from passk_fast.errors import ConfigError
from passk_fast.model.divisibility import (
    Cuts,
    check_divisible,
    check_engine_ranks,
    check_fits,
    violations,
)
from passk_fast.model.shape import ModelShape

DENSE = ModelShape.of(
    ShapeConfig(num_layers=12, num_heads=12, num_kv_heads=6, intermediate_size=60), vocab=192
)
MIXTURE = ModelShape.of(
    ShapeConfig(
        architecture="qwen3_moe",
        num_layers=12,
        num_heads=12,
        num_kv_heads=6,
        intermediate_size=30,
        num_experts=10,
        experts_per_token=2,
    ),
    vocab=192,
)


@pytest.mark.parametrize(
    ("shape", "cuts", "message"),
    [
        (DENSE, Cuts(tensor=12), "6 key-value heads are not divisible by parallel.tensor = 12"),
        (DENSE, Cuts(tensor=5), "12 heads are not divisible by parallel.tensor = 5"),
        (DENSE, Cuts(tensor=7), "60 channels of the MLP are not divisible by parallel.tensor = 7"),
        (DENSE, Cuts(rollout_tensor=8), "12 heads are not divisible by rollout.tensor = 8"),
        (DENSE, Cuts(rollout_tensor=9), "60 channels of the MLP are not divisible by rollout"),
        (DENSE, Cuts(rollout_tensor=5), "192 rows of vLLM's vocabulary are not divisible by roll"),
        (DENSE, Cuts(rollout_tensor=4), "6 key-value heads are not divisible by rollout.tensor ="),
        (
            DENSE,
            Cuts(pipeline=2, virtual=4),
            "12 layers are not divisible by parallel.pipeline x parallel.virtual_pipeline = 2 x 4",
        ),
        (MIXTURE, Cuts(expert=4), "10 experts are not divisible by parallel.expert = 4"),
        (MIXTURE, Cuts(expert_tensor=4), "30 channels of an expert are not divisible by parallel"),
        (MIXTURE, Cuts(rollout_tensor=12), "30 channels of an expert are not divisible by rollout"),
    ],
)
def test_a_broken_rule_names_what_how_many_and_the_divisor(
    shape: ModelShape, cuts: Cuts, message: str
) -> None:
    assert any(broken.startswith(message) for broken in violations(shape, cuts))


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        (DENSE, Cuts(tensor=6, pipeline=3, virtual=4, rollout_tensor=12)),
        (MIXTURE, Cuts(tensor=6, pipeline=12, expert=5, expert_tensor=15, rollout_tensor=2)),
        (MIXTURE, Cuts(rollout_tensor=12, rollout_whole_experts=True)),
        # Cut by parallel.expert_tensor, not by parallel.tensor.
        (MIXTURE, Cuts(tensor=3, expert_tensor=5)),
    ],
)
def test_what_divides_is_let_through(shape: ModelShape, cuts: Cuts) -> None:
    check_divisible(shape, cuts)


def test_all_broken_rules_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_divisible(DENSE, Cuts(tensor=8, pipeline=5), "model.path")
    text = str(caught.value)
    assert text.startswith("model.path: ")
    assert text.count("not divisible") == 4  # heads, key-value heads, MLP, layers


@given(st.integers(1, 13), st.integers(1, 13))
def test_an_engine_cuts_or_shares_key_value_heads(kv_heads: int, tensor: int) -> None:
    """Against counting: every rank has equally many heads, or every head equally many ranks."""
    heads = kv_heads * math.lcm(*range(1, 14))
    shape = ModelShape.of(
        ShapeConfig(
            num_heads=heads, num_kv_heads=kv_heads, intermediate_size=math.lcm(*range(1, 14))
        )
    )
    even = kv_heads % tensor == 0 or tensor % kv_heads == 0
    assert (not list(violations(shape, Cuts(rollout_tensor=tensor)))) == even


@pytest.mark.parametrize(("ranks", "tensor"), product((1, 4, 6), (1, 2, 4)))
def test_ranks_make_up_whole_engines(ranks: int, tensor: int) -> None:
    if ranks % tensor == 0:
        check_engine_ranks(ranks, tensor, "GPUs")
        return
    message = rf"{ranks} GPUs are not divisible by rollout\.tensor = {tensor}"
    with pytest.raises(ConfigError, match=message):
        check_engine_ranks(ranks, tensor, "GPUs")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(parallel=ParallelConfig(tensor=8)), "not divisible by parallel.tensor = 8"),
        (RunConfig(rollout=RolloutConfig(tensor=8)), "not divisible by rollout.tensor = 8"),
        (
            RunConfig(
                model=ModelConfig(path="somewhere"), rollout=RolloutConfig(max_prompt_tokens=1000)
            ),
            "holds 1024 positions, fewer",
        ),
        (RunConfig(parallel=ParallelConfig(expert=2)), "a dense model has no experts: parallel"),
        (
            RunConfig(algorithm=AlgorithmConfig(balance_coef=0.1)),
            "a dense model has no experts: algorithm.balance_coef",
        ),
        (
            RunConfig(rollout=RolloutConfig(stop_token_ids=(1, DENSE.vocab))),
            f"rollout.stop_token_ids names token {DENSE.vocab}, but the model's vocabulary",
        ),
    ],
)
def test_a_configuration_that_does_not_fit(config: RunConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: .*{message}"):
        check_fits(DENSE, config, "here")
