"""The plan's arithmetic: what a step holds, how times scale, what a weight sync moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from passk_fast.config import (
    AlgorithmConfig,
    BenchConfig,
    ModelConfig,
    ParallelConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
)
from passk_fast.errors import ConfigError
from passk_fast.model.flops import ModelFlops
from passk_fast.model.shape import ModelShape
from passk_fast.plan.facts import Costs, Facts, StageBytes, with_recompute
from passk_fast.plan.hardware import GPUS, RATES, gpu_of, sides
from passk_fast.plan.memory import EngineMemory, chunk_bytes, in_flight, transient_bytes
from passk_fast.plan.traffic import Reshard, reshard_of
from passk_fast.plan.work import Workload, bubble_share, decode_time, train_time
from passk_fast.weights.placement import Tensors

MODELS = Path(__file__).parents[2] / "configs" / "models"
DENSE = ModelShape.read(MODELS / "Qwen3-32B")
MIXTURE = ModelShape.read(MODELS / "Qwen3-30B-A3B")
H100 = GPUS["h100"]
BENCH = BenchConfig(prompt_tokens=100, response_mean=300.0)


def run(**sections: Any) -> RunConfig:
    return RunConfig(
        **{
            "model": ModelConfig(path="x", dtype="bfloat16"),
            "prompts_per_step": 64,
            "micro_batch_tokens": 4096,
            "bench": BENCH,
            **sections,
        }
    )


def facts(**changes: Any) -> Facts:
    stage = StageBytes(
        weights=10**9, expert_weights=0, parameters=2 * 10**9, gradients=4 * 10**9,
        main=4 * 10**9, moments=8 * 10**9,
    )  # fmt: skip
    one = Costs(saved=10, peak=15, element_bytes=100, element_bytes_forward=40, sent={2: 8})
    two = Costs(saved=18, peak=25, element_bytes=180, element_bytes_forward=70, sent={2: 15})
    last = Costs(saved=13, peak=20, element_bytes=120, element_bytes_forward=50, sent={2: 9})
    runs = {"one": one, "two": two, "first": one, "last": last}
    costs = {mode: runs for mode in ("none", "selective", "full")}
    return replace(Facts(stages=(stage,), costs=costs, logits_head=0), **changes)


def trained(config: RunConfig, gpus: int, shape: ModelShape = DENSE) -> Any:
    work, flops = Workload.of(config), ModelFlops.of(shape)
    return train_time(config, work, flops, shape, facts(), H100, gpus)


def decoded(config: RunConfig, gpus: int, kv_tokens: int = 10**6) -> Any:
    engine = EngineMemory(
        weights=64 << 30, workspace=1 << 30, kv_cache=kv_tokens * 1000, kv_bytes_per_token=1000
    )
    work, flops = Workload.of(config), ModelFlops.of(DENSE)
    return decode_time(config, work, flops, DENSE, engine, H100, gpus)


# ---- the workload ----------------------------------------------------------------------------


def test_lengths_come_from_bench_or_from_the_limits() -> None:
    given = Workload.of(run())
    assert (given.prompts, given.rollouts, given.prompt, given.response) == (64, 16, 100, 300)
    assert given.tokens == 64 * 16 * 400
    by_limits = Workload.of(run(bench=BenchConfig()))
    assert (by_limits.prompt, by_limits.response, by_limits.longest) == (512, 256, 512)


def test_a_shared_prompt_is_trained_once() -> None:
    work = Workload.of(run())
    alone, shared = work.trained(False), work.trained(True)
    assert alone.tokens == work.tokens
    assert alone.tokens - shared.tokens == 64 * (15 * 100 + 1)
    assert alone.scored == shared.scored == 64 * 16 * 300


@pytest.mark.parametrize(
    ("tokens", "gpus", "wanted"), [(4096, 8, 13), (4096, 16, 7), (10**6, 8, 1)]
)
def test_micro_batches_are_full(tokens: int, gpus: int, wanted: int) -> None:
    config = run(micro_batch_tokens=tokens, share_prompts=False)
    assert Workload.of(config).micro_batches(config, gpus) == wanted


# ---- time of training ------------------------------------------------------------------------


def test_twice_the_gpus_halve_what_is_computed() -> None:
    few, many = trained(run(), 8), trained(run(), 16)
    for part in ("matmul", "attention", "head", "elementwise"):
        assert getattr(many, part) == pytest.approx(getattr(few, part) / 2, rel=1e-9)
    assert many.optimizer == few.optimizer


def test_recomputing_all_layers_costs_a_forward_pass_more() -> None:
    plain = trained(run(), 8)
    full = trained(with_recompute(run(), "full"), 8)
    selective = trained(with_recompute(run(), "selective"), 8)
    assert full.matmul == pytest.approx(plain.matmul * 4 / 3)
    assert selective.matmul == plain.matmul
    assert selective.attention == full.attention > plain.attention


def test_the_total_is_the_sum_of_its_parts() -> None:
    time = trained(run(), 8)
    parts = [value for name, value in vars(time).items() if name != "micro_batches"]
    assert time.total == pytest.approx(sum(parts))
    assert all(value >= 0 for value in parts)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "micro", "wanted"),
    [(1, 1, 4, 0.0), (2, 1, 1, 0.5), (4, 1, 12, 3 / 15), (4, 2, 12, 3 / 27)],
)
def test_idle_share_of_a_pipeline(pipeline: int, virtual: int, micro: int, wanted: float) -> None:
    config = run(parallel=ParallelConfig(pipeline=pipeline, virtual_pipeline=virtual))
    assert bubble_share(config, micro) == pytest.approx(wanted)


def test_only_a_pipeline_has_a_bubble_and_only_replicas_exchange_gradients() -> None:
    assert trained(run(), 8).bubble == 0.0
    assert trained(run(parallel=ParallelConfig(pipeline=4)), 8).bubble > 0.0
    assert trained(run(), 8).gradient_traffic > 0.0
    assert trained(run(parallel=ParallelConfig(tensor=8)), 8).gradient_traffic == 0.0


def test_experts_that_are_spread_exchange_tokens() -> None:
    together = trained(run(), 8, MIXTURE)
    spread = trained(run(parallel=ParallelConfig(expert=8)), 8, MIXTURE)
    assert together.expert_traffic == 0.0
    assert spread.expert_traffic > 0.0
    assert trained(run(parallel=ParallelConfig(expert=16)), 16, MIXTURE).expert_traffic > (
        spread.expert_traffic / 2
    ), "half of the tokens per GPU, but over the network"


def test_log_probs_before_the_update_are_forward_passes() -> None:
    assert trained(run(), 8).extra_forward == 0.0
    minibatches = run(algorithm=AlgorithmConfig(minibatches=2))
    both = run(algorithm=AlgorithmConfig(minibatches=2), loss=PolicyLoss(kl_coef=0.1))
    one = trained(minibatches, 8).extra_forward
    assert one > 0.0
    assert trained(both, 8).extra_forward == pytest.approx(2 * one)


# ---- time of decoding ------------------------------------------------------------------------


def test_a_step_of_sampling_is_as_long_as_its_longest_response() -> None:
    config = run(rollout=RolloutConfig(max_num_seqs=1024))
    time = decoded(config, 8)
    assert time.concurrency == 128
    assert time.steps == config.rollout.max_response_tokens


def test_what_does_not_fit_waits() -> None:
    roomy = decoded(run(rollout=RolloutConfig(max_num_seqs=1024)), 8)
    cramped = decoded(run(rollout=RolloutConfig(max_num_seqs=1024)), 8, kv_tokens=400 * 32)
    assert cramped.concurrency == 32
    assert cramped.steps == 4 * 300
    assert cramped.total > roomy.total
    limited = decoded(run(rollout=RolloutConfig(max_num_seqs=32)), 8)
    assert limited.concurrency == 32


def test_more_engines_have_less_to_do() -> None:
    times = [decoded(run(), gpus) for gpus in (8, 16, 32)]
    assert times[0].keys == pytest.approx(2 * times[1].keys) == pytest.approx(4 * times[2].keys)
    assert times[0].prefill > times[1].prefill > times[2].prefill


def test_one_gpu_per_engine_needs_no_collectives() -> None:
    alone = decoded(run(), 8)
    assert alone.overhead == pytest.approx(alone.steps * RATES.step_s)
    split = decoded(run(rollout=RolloutConfig(tensor=2)), 8)
    assert split.overhead > split.steps * RATES.step_s


# ---- memory ----------------------------------------------------------------------------------


def test_what_a_chunk_saves_grows_by_the_layer() -> None:
    runs = facts().costs["none"]
    assert chunk_bytes(runs, 1, first=False, last=False) == 10
    assert chunk_bytes(runs, 5, first=False, last=False) == 10 + 4 * 8
    assert chunk_bytes(runs, 5, first=True, last=True) == 10 + 4 * 8 + 3
    assert transient_bytes(runs) == 7


@pytest.mark.parametrize(
    ("stage", "virtual", "micro", "wanted"),
    [(0, 1, 8, 4), (3, 1, 8, 1), (0, 1, 2, 2), (0, 2, 8, 11), (3, 2, 8, 5), (0, 2, 2, 4)],
)
def test_micro_batches_in_flight(stage: int, virtual: int, micro: int, wanted: int) -> None:
    assert in_flight(stage, 4, virtual, micro) == wanted


# ---- weight synchronisation ------------------------------------------------------------------


def moved(parallel: ParallelConfig, rollout: RolloutConfig, gpus: int) -> Reshard:
    tensors = Tensors.of(ModelShape.read(MODELS / "Qwen2.5-7B"))
    return reshard_of(run(parallel=parallel, rollout=rollout), tensors, H100, gpus)


def test_ranks_that_both_train_and_sample_a_whole_model_move_nothing() -> None:
    still = moved(ParallelConfig(), RolloutConfig(), 8)
    assert (still.received, still.sent, still.total) == (0, 0, 0)
    assert still.near == 1.0
    assert still.kept > 14e9, "7.6 B weights of two bytes"


def test_a_split_trainer_sends_the_rest_of_the_model() -> None:
    whole = moved(ParallelConfig(), RolloutConfig(), 8).kept
    split = moved(ParallelConfig(tensor=4), RolloutConfig(), 8)
    assert split.received + split.kept == pytest.approx(whole, rel=0.01)
    assert split.received == pytest.approx(0.75 * whole, rel=0.05)
    assert split.total == pytest.approx(8 * split.received, rel=0.05)
    assert split.near == 1.0
    assert split.seconds > 0.0


def test_dedicated_rollout_ranks_receive_everything() -> None:
    rollout = RolloutConfig(dedicated_ranks=8, tensor=4, max_off_policy_steps=1, sleep=False)
    config = run(parallel=ParallelConfig(tensor=4), rollout=rollout, loss=PolicyLoss(tis_clip=2.0))
    tensors = Tensors.of(ModelShape.read(MODELS / "Qwen2.5-7B"))
    apart = reshard_of(config, tensors, H100, 16)
    assert apart.kept == 0
    assert apart.near == 0.0, "the other node trains"
    whole = moved(ParallelConfig(), RolloutConfig(), 8).kept
    assert apart.received == pytest.approx(whole / 4, rel=0.05)


# ---- facts and hardware ----------------------------------------------------------------------


def test_facts_survive_json() -> None:
    found = facts()
    assert Facts.from_json(found.to_json()) == found


def test_stages_between_the_first_and_the_last_are_alike() -> None:
    first, middle, last = (replace(facts().stages[0], weights=n) for n in (1, 2, 3))
    found = facts(stages=(first, middle, last))
    assert [found.stage(i, 5).weights for i in range(5)] == [1, 2, 2, 2, 3]
    assert [facts(stages=(first, last)).stage(i, 2).weights for i in range(2)] == [1, 3]


def test_what_a_stage_holds() -> None:
    stage = facts().stages[0]
    assert stage.optimizer == 12 * 10**9
    assert stage.total == 18 * 10**9


@pytest.mark.parametrize("name", GPUS)
def test_gpus_by_name(name: str) -> None:
    gpu = gpu_of(name)
    assert gpu.name == name
    assert gpu.link_bytes > gpu.network_bytes


def test_an_unknown_gpu() -> None:
    with pytest.raises(ConfigError, match="one of h100, h200, b200, got 'a100'"):
        gpu_of("a100")


@pytest.mark.parametrize(("dedicated", "wanted"), [(0, (16, 16)), (4, (12, 4))])
def test_who_trains_and_who_samples(dedicated: int, wanted: tuple[int, int]) -> None:
    assert sides(16, dedicated) == wanted
