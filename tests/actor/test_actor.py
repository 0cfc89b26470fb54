"""The actor against transformers, and against itself on other meshes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from passk_fast.actor.model import uses_transformer_engine
from passk_fast.data.packing import plan_units, prompt_groups
from tests.actor.workers import FEW, make_sequences, model_shape, run_config
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.actor.workers"
MESHES = [
    pytest.param({"tensor": 2}, id="tp2"),
    pytest.param({"pipeline": 2}, id="pp2"),
    pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-interleaved"),
]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_logits_equal_transformers(one_rank: RankPool, folders: dict[str, str], kind: str) -> None:
    (gap,) = one_rank.run(f"{W}:logits_gap", kind, folders[kind], {})
    assert gap <= 1e-4


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_logits_equal_transformers_on_meshes(
    two_ranks: RankPool, folders: dict[str, str], kind: str, mesh: dict[str, Any]
) -> None:
    gaps = two_ranks.run(f"{W}:logits_gap", kind, folders[kind], mesh)
    assert max(gaps) <= 1e-4
    assert max(gaps) > 0.0  # something was compared


@pytest.fixture(scope="module")
def reference_gradients(
    one_rank: RankPool, folders: dict[str, str]
) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """TP = PP = DP = 1, all sequences in one micro-batch."""
    return {
        kind: one_rank.run(f"{W}:gradients", kind, folders[kind], {}, 4096)[0]
        for kind in ("qwen3", "qwen2")
    }


def assert_same(
    got: tuple[float, dict[str, torch.Tensor]], want: tuple[float, dict[str, torch.Tensor]]
) -> None:
    """Loss and every gradient to 1e-5 relative (float32; norms of whole tensors)."""
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        assert gradient.norm() > 0, name
        error = (got[1][name] - gradient).norm() / gradient.norm()
        assert error <= 1e-5, f"{name}: {error:.2e}"


@pytest.mark.parametrize("tokens", [56, 100], ids=["one-sequence-each", "two-or-so"])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_micro_batches_do_not_change_gradients(
    one_rank: RankPool,
    folders: dict[str, str],
    reference_gradients: dict[str, Any],
    kind: str,
    tokens: int,
) -> None:
    got = one_rank.run(f"{W}:gradients", kind, folders[kind], {}, tokens)[0]
    assert_same(got, reference_gradients[kind])


@pytest.mark.parametrize("tokens", [4096, 120], ids=["one-micro-batch", "many"])
@pytest.mark.parametrize(
    "mesh",
    [
        *MESHES,
        pytest.param({}, id="dp2"),
        pytest.param({"tensor": 2, "recompute": "full"}, id="tp2-recompute-full"),
        pytest.param({"tensor": 2, "recompute": "selective"}, id="tp2-recompute-selective"),
    ],
)
def test_meshes_do_not_change_gradients(
    two_ranks: RankPool,
    folders: dict[str, str],
    reference_gradients: dict[str, Any],
    mesh: dict[str, Any],
    tokens: int,
) -> None:
    got = two_ranks.run(f"{W}:gradients", "qwen3", folders["qwen3"], mesh, tokens)[0]
    assert_same(got, reference_gradients["qwen3"])


@pytest.mark.parametrize("tokens", [4096, 60], ids=["one-micro-batch", "groups-cut"])
def test_shared_prompts_do_not_change_gradients(
    one_rank: RankPool, folders: dict[str, str], reference_gradients: dict[str, Any], tokens: int
) -> None:
    got = one_rank.run(f"{W}:gradients", "qwen3", folders["qwen3"], {}, tokens, True)[0]
    assert_same(got, reference_gradients["qwen3"])


@pytest.mark.parametrize(
    ("share", "algorithm", "want"),
    [
        (True, {}, [True, True, True, True]),
        (False, {}, [False] * 4),
        ("auto", {}, [True, False, False, True]),
        ("auto", {"routing_replay": "replay"}, [False] * 4),
        (True, {"routing_replay": "replay"}, [True, True, True, True]),
    ],
)
def test_prompts_are_shared_where_it_saves(
    one_rank: RankPool,
    folders: dict[str, str],
    share: Any,
    algorithm: dict[str, Any],
    want: list[bool],
) -> None:
    folder = folders["qwen3_moe" if algorithm else "qwen3"]
    assert one_rank.run(f"{W}:shares", folder, share, **algorithm)[0] == want


def test_transformer_engine_keeps_prompts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for share, engine in (("auto", True), (False, True), (True, False)):
        config = run_config({}, 4096, share)  # type: ignore[arg-type]
        assert uses_transformer_engine(config, model_shape("qwen3"), "cuda") == engine
        assert not uses_transformer_engine(config, model_shape("qwen3"), "cpu")


@pytest.mark.parametrize("tokens", [4096, 120], ids=["one-micro-batch", "many"])
@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
def test_context_parallelism_does_not_change_gradients(
    two_ranks: RankPool,
    folders: dict[str, str],
    reference_gradients: dict[str, Any],
    share: bool,
    tokens: int,
) -> None:
    got = two_ranks.run(f"{W}:gradients", "qwen3", folders["qwen3"], {"context": 2}, tokens, share)[
        0
    ]
    assert_same(got, reference_gradients["qwen3"])


@pytest.mark.parametrize("mesh", [*MESHES, pytest.param({}, id="dp2")])
def test_shared_prompts_do_not_change_gradients_on_meshes(
    two_ranks: RankPool,
    folders: dict[str, str],
    reference_gradients: dict[str, Any],
    mesh: dict[str, Any],
) -> None:
    got = two_ranks.run(f"{W}:gradients", "qwen3", folders["qwen3"], mesh, 120, True)[0]
    assert_same(got, reference_gradients["qwen3"])


def test_groups_cut_between_ranks_do_not_change_gradients(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str]
) -> None:
    sequences = make_sequences()[:FEW]
    assert len(plan_units(sequences, 2, 120)[0]) > len(prompt_groups(sequences))
    work = f"{W}:gradients", "qwen3", folders["qwen3"]
    whole = one_rank.run(*work, {}, 4096, False, "first")[0]
    assert_same(two_ranks.run(*work, {}, 120, True, "first")[0], whole)


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"pipeline": 2}], ids=["dp2", "tp2", "pp2"])
def test_pruning_does_not_change_gradients(
    two_ranks: RankPool,
    one_rank: RankPool,
    folders: dict[str, str],
    mesh: dict[str, Any],
    share: bool,
) -> None:
    work = f"{W}:gradients", "qwen3", folders["qwen3"]
    kept = one_rank.run(*work, {}, 4096, False, "kept")[0]
    pruned = two_ranks.run(*work, mesh, 120, share, "pruned")[0]
    assert_same(pruned, kept)


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}], ids=["dp2", "tp2"])
def test_bfloat16_has_float32_main_gradients(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    for seen in two_ranks.run(f"{W}:bfloat16_step", "qwen3", folders["qwen3"], mesh):
        assert 0 < seen["worst_error"] < 0.05  # bfloat16 keeps eight bits
        assert seen["least_move"] > 1e-3  # lr is 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("second", ["pipeline", "context"])
def test_four_ranks_with_tensor_parallelism(
    folders: dict[str, str], reference_gradients: dict[str, Any], second: str
) -> None:
    with RankPool(4) as pool:
        mesh = {"tensor": 2, second: 2}
        got = pool.run(f"{W}:gradients", "qwen2", folders["qwen2"], mesh, 200)[0]
    assert_same(got, reference_gradients["qwen2"])


def test_a_nan_on_one_rank_skips_the_step_on_all(
    two_ranks: RankPool, folders: dict[str, str]
) -> None:
    for applied, change in two_ranks.run(f"{W}:non_finite_step", "qwen3", folders["qwen3"], 1):
        assert not applied
        assert change == 0.0


@pytest.mark.parametrize("mesh", [{"pipeline": 2}, {"tensor": 2}])
def test_recomputed_logprobs_are_those_of_training(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    gaps = two_ranks.run(f"{W}:same_logprobs", "qwen3", folders["qwen3"], mesh)
    assert max(gaps) <= 1e-4  # a sum over about 400 tokens


def test_kl_to_the_reference_starts_at_zero(one_rank: RankPool, folders: dict[str, str]) -> None:
    (first, second) = one_rank.run(f"{W}:reference_kl", "qwen3", folders["qwen3"])[0]
    assert first == pytest.approx(0.0, abs=1e-9)
    assert second > 1e-3
