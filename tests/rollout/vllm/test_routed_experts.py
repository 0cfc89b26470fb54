"""The experts that responses carry, against transformers' routers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from passk_fast.advantage import table, zero_advantage_rows
from passk_fast.config import ShapeConfig
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.rollout.collect import CollectStats
from passk_fast.rollout.dynamic_sampling import InformativeShare, RoundSampler, sample_batch
from passk_fast.rollout.vllm.routed_experts import ReturnedRouting
from tests.moe_model import LAYERS, TOP_K, ReferenceRouter, make_moe_folder
from tests.ranks import RankPool

W = "tests.rollout.vllm.workers:"
LONG = "abcdefgh" * 5  # one whole block of the cache, and a part of the next
TEXTS = [LONG, "b", "hgfe", "a\nb", LONG + "aa", "c"]
PROMPTS = [Prompt(id=f"p{i}", text=text, answer="", task="test") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_moe_folder(tmp_path_factory.mktemp("moe"), seed=3)


def check_groups(folder: str, groups: list[RolloutGroup]) -> int:
    """Compare every response's experts with the reference's; how many choices were compared."""
    reference, compared = ReferenceRouter(folder), 0
    for group in groups:
        for rollout in group.rollouts:
            ids = group.prompt_ids + rollout.token_ids
            if not rollout.token_ids:
                assert rollout.routed_experts is None
                continue
            routed = rollout.routed_experts
            assert routed is not None
            assert routed.dtype == np.uint8
            assert routed.shape == (len(ids) - 1, LAYERS, TOP_K)
            expected, gap = reference.experts(ids[:-1])
            safe = gap > 1e-5  # float32 against float64: nearer than this may fall either way
            assert safe.mean() > 0.99
            np.testing.assert_array_equal(np.sort(routed)[safe], expected[safe])
            compared += int(safe.sum())
    return compared


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("tensor", [1, 2])
def test_experts_are_those_of_the_reference(pool: RankPool, folder: str, tensor: int) -> None:
    """At TP1 both engines sample half the prompts, and what they captured travels."""
    pool.run(W + "start", folder, tensor, routing_replay="measure", max_prompt_tokens=48)
    found = pool.run(W + "collect_with_a", SampleRequest(prompts=PROMPTS, num_rollouts=4, seed=1))
    (groups, stats), (others, _) = found
    # the first half of the four responses to a long prompt but the first find its block
    assert stats.cached_tokens >= 3 * 32
    assert check_groups(folder, groups) > 1000
    for group, other in zip(groups, others, strict=True):
        for one, two in zip(group.rollouts, other.rollouts, strict=True):
            np.testing.assert_array_equal(one.routed_experts, two.routed_experts)
            assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [pytest.param(1, marks=pytest.mark.sample), 2])
def test_experts_survive_aborts_and_a_full_cache(pool: RankPool, folder: str, tensor: int) -> None:
    """Groups that are stopped hand their blocks on to others; new weights drop what was cached."""
    options = {"max_prompt_tokens": 48, "kv_cache_gib": 0.0005, "max_num_seqs": 3}
    pool.run(W + "start", folder, tensor, routing_replay="replay", **options)
    zero_rows = zero_advantage_rows(table("passk", 6, 2))
    aborted = 0
    for seed in range(3):
        groups, stats = pool.run(
            W + "collect_with_a",
            SampleRequest(
                prompts=PROMPTS, num_rollouts=6, seed=seed, zero_advantage_rows=zero_rows
            ),
        )[0]
        check_groups(folder, groups)
        aborted += stats.aborted
    assert aborted > 0


@pytest.mark.slow
@pytest.mark.sample
def test_experts_come_with_every_round_of_dynamic_sampling(pool: RankPool, folder: str) -> None:
    """Rounds follow one another on the same weights, so later ones find what earlier ones cached,
    and groups that are stopped leave places to them."""
    pool.run(W + "start", folder, 1, routing_replay="replay", max_prompt_tokens=48, max_num_seqs=8)
    zero_rows = zero_advantage_rows(table("passk", 4, 2))
    asked = []

    def collect(indices: list[int], first: int) -> tuple[list[RolloutGroup], CollectStats]:
        prompts = [PROMPTS[i % len(PROMPTS)] for i in indices]
        request = SampleRequest(
            prompts=prompts, num_rollouts=4, seed=5, first_key=first, zero_advantage_rows=zero_rows
        )
        groups, stats = pool.run(W + "collect_with_a", request)[0]
        asked.append(len(groups))
        return groups, stats

    def advantages(groups: list[RolloutGroup]) -> np.ndarray:
        """1 in groups with a gradient; a group that was stopped has none."""
        rewards = np.stack([group.rewards for group in groups])
        whole = ~np.isnan(rewards).any(axis=1)
        informative = whole & ~zero_rows[np.nansum(rewards, axis=1).astype(int)]
        return np.repeat(informative[:, None].astype(float), 4, axis=1)

    order = iter(range(100))
    sampler = RoundSampler(
        take=lambda count: [next(order) for _ in range(count)],
        collect=collect,
        advantages=advantages,
    )
    batch = sample_batch(sampler, wanted=6, cap=24, share=InformativeShare(), multiple=2)
    assert batch.rounds == len(asked) > 1
    assert sum(asked) == len(batch.groups) > 6
    assert batch.stats.aborted > 0
    assert batch.stats.cached_tokens > 0
    assert batch.informative_P[: batch.end].sum() == 6
    assert check_groups(folder, batch.groups) > 1000


@pytest.mark.slow
def test_experts_follow_new_weights(pool: RankPool, folder: str, tmp_path: Path) -> None:
    pool.run(W + "start", folder, 1, routing_replay="replay", max_prompt_tokens=48)
    pool.run(W + "collect_with_a", SampleRequest(prompts=PROMPTS, num_rollouts=2, seed=0))
    other = make_moe_folder(tmp_path / "other", seed=4)
    pool.run(W + "load", other)
    groups, _ = pool.run(
        W + "collect_with_a", SampleRequest(prompts=PROMPTS, num_rollouts=2, seed=0)
    )[0]
    assert check_groups(other, groups) > 500


def test_stored_types_hold_every_expert() -> None:
    found = [
        ModelShape.of(
            ShapeConfig(architecture="qwen3_moe", num_experts=count, experts_per_token=2)
        ).expert_index_dtype
        for count in (256, 300)
    ]
    assert found == [np.uint8, np.int16]


def test_a_dense_model_is_refused() -> None:
    dense = ModelShape.of(ShapeConfig(architecture="qwen3"))
    dense.check_routing_replay("off")
    with pytest.raises(ConfigError, match=r"the model \(qwen3\) is not a mixture"):
        dense.check_routing_replay("replay")


def test_what_vllm_returns_is_cut_to_the_tokens_that_ran() -> None:
    """As a GPU's engine returns them; the row of the last token may be there."""
    found = np.arange(7 * 3 * 2, dtype=np.int32).reshape(7, 3, 2)
    completion = SimpleNamespace(token_ids=[1, 2, 3, 4], routed_experts=found)
    output = SimpleNamespace(prompt_token_ids=[5, 6, 7], outputs=[completion])
    routing = ReturnedRouting(SimpleNamespace(expert_index_dtype=np.dtype(np.uint8)))
    experts = routing.end(output)
    np.testing.assert_array_equal(experts, found[:6])
    assert experts.dtype == np.uint8
    completion.routed_experts = found[:5]
    with pytest.raises(RuntimeError, match="those of 5 tokens instead of the experts of 6"):
        routing.end(output)
