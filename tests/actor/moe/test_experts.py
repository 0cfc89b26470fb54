"""The mixture-of-experts actor against transformers, and against itself on other meshes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from passk_fast.config import LogprobGapConfig, PolicyLoss
from tests.actor.test_actor import assert_same
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.actor.workers"
E = "tests.actor.moe.expert_workers"
ALL: dict[str, dict[str, Any]] = {
    "dp2": {},
    "ep2": {"expert": 2},
    "tp2": {"tensor": 2},
    "tp2-ep2": {"tensor": 2, "expert": 2},
    "tp2-etp2": {"tensor": 2, "expert_tensor": 2},
    "pp2": {"pipeline": 2},
    "cp2": {"context": 2},
    "full": {"tensor": 2, "recompute": "full"},
}


def meshes(names: str, slow: str = "") -> list[Any]:
    """Parameters for meshes by name, some of them slow."""
    quick = [pytest.param(ALL[name], id=name) for name in names.split()]
    return quick + [pytest.param(ALL[n], id=n, marks=pytest.mark.slow) for n in slow.split()]


LARGE_MESHES = [
    pytest.param({"tensor": 2, "expert": 2, "expert_tensor": 2}, id="tp2-dp2-ep2-etp2"),
    pytest.param({"pipeline": 2, "tensor": 2, "expert": 2}, id="pp2-tp2-ep2"),
    pytest.param({"expert": 2}, id="dp4-ep2"),
]


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[RankPool]:
    """A world of four."""
    with RankPool(4) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_moe_raw", "mixtral"])
def test_logits_equal_transformers(one_rank: RankPool, folders: dict[str, str], kind: str) -> None:
    """`raw` weighs experts by their share of the softmax over all (norm_topk_prob = false)."""
    (gap,) = one_rank.run(f"{W}:logits_gap", kind, folders[kind], {})
    assert gap <= 1e-4


@pytest.mark.parametrize("mesh", meshes("ep2 tp2 tp2-ep2 tp2-etp2 pp2"))
def test_logits_equal_transformers_on_meshes(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    gaps = two_ranks.run(f"{W}:logits_gap", "qwen3_moe", folders["qwen3_moe"], mesh)
    assert 0.0 < max(gaps) <= 1e-4


@pytest.mark.parametrize(
    "counts", [[3, 1, 7, 0, 2, 0, 5, 4], [0, 0, 0, 9, 0, 0, 0, 0], [0] * 8], ids=str
)
def test_experts_together_are_experts_one_by_one(
    one_rank: RankPool, folders: dict[str, str], counts: list[int]
) -> None:
    """Of 8 experts, some without a token; float32, other order of sums."""
    (gap,) = one_rank.run(f"{E}:grouped_gap", "qwen3_moe", folders["qwen3_moe"], counts)
    assert gap <= 1e-4


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_a_model_goes_with_its_actor(
    one_rank: RankPool, folders: dict[str, str], kind: str
) -> None:
    """With it go its process groups, each of which has threads."""
    assert one_rank.run(f"{E}:is_freed", kind, folders[kind]) == [True]


@pytest.fixture(scope="module")
def reference(
    one_rank: RankPool, folders: dict[str, str]
) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """One rank, all sequences in one micro-batch; "dead" without advantage for two in three."""
    run = f"{W}:gradients", "qwen3_moe", folders["qwen3_moe"], {}, 4096
    return {"live": one_rank.run(*run)[0], "dead": one_rank.run(*run, False, "kept")[0]}


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("tokens", [56, 120], ids=["one-sequence-each", "two-or-so"])
def test_micro_batches_do_not_change_gradients(
    one_rank: RankPool, folders: dict[str, str], reference: Any, tokens: int, share: bool
) -> None:
    got = one_rank.run(f"{W}:gradients", "qwen3_moe", folders["qwen3_moe"], {}, tokens, share)[0]
    assert_same(got, reference["live"])


@pytest.mark.parametrize(
    "mesh",
    [
        *meshes("dp2 ep2 tp2 tp2-ep2 tp2-etp2 pp2 full"),
        pytest.param({"context": 2, "expert": 2}, id="cp2-ep2"),
        pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-interleaved"),
    ],
)
def test_meshes_do_not_change_gradients(
    two_ranks: RankPool, folders: dict[str, str], reference: Any, mesh: dict[str, Any]
) -> None:
    got = two_ranks.run(f"{W}:gradients", "qwen3_moe", folders["qwen3_moe"], mesh, 120)[0]
    assert_same(got, reference["live"])


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("mesh", meshes("ep2 tp2-ep2"))
def test_pruning_does_not_change_gradients(
    two_ranks: RankPool, folders: dict[str, str], reference: Any, mesh: dict[str, Any], share: bool
) -> None:
    run = f"{W}:gradients", "qwen3_moe", folders["qwen3_moe"]
    assert_same(two_ranks.run(*run, mesh, 120, share, "pruned")[0], reference["dead"])


def test_mixtral_has_the_same_gradients(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str]
) -> None:
    run = f"{W}:gradients", "mixtral", folders["mixtral"]
    want = one_rank.run(*run, {}, 4096)[0]
    assert_same(two_ranks.run(*run, ALL["tp2-ep2"], 120, True)[0], want)


@pytest.mark.parametrize("mesh", meshes("ep2 tp2-ep2", "dp2"))
def test_bfloat16_trains_as_float32_does(
    two_ranks: RankPool, folders: dict[str, str], mesh: dict[str, Any]
) -> None:
    """bfloat16 keeps eight bits; the bounds are some three times what was found."""
    run = f"{E}:bfloat16_beside_float32", folders["qwen3_moe"], mesh
    found = two_ranks.run(*run)
    assert sum(one["held"] for one in found) == found[0]["weights"]  # each has a master somewhere
    for one in found:
        (loss, *norms), (loss16, *norms16) = one["float32"], one["bfloat16"]
        assert 0 < abs(loss16 - loss) <= 1e-3 * loss
        assert norms16 == pytest.approx(norms, rel=0.025)
        assert one["types"] == {(torch.bfloat16, torch.float32)}  # weights, gradients
        assert one["in_sync"]  # each weight is its float32 master, rounded
        assert one["rounded"] > 0.9 * one["held"]  # and the masters do have more bits
        assert one["least_move"] > 1e-3  # two steps of 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mesh", LARGE_MESHES)
def test_four_ranks(
    four_ranks: RankPool, folders: dict[str, str], reference: Any, mesh: dict[str, Any]
) -> None:
    got = four_ranks.run(f"{W}:gradients", "qwen3_moe", folders["qwen3_moe"], mesh, 200)[0]
    assert_same(got, reference["live"])


@pytest.fixture(scope="module")
def saved(
    one_rank: RankPool, folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, torch.Tensor], list[float]]:
    """(checkpoint after two steps, weights after four uninterrupted ones, norms of two)."""
    path = tmp_path_factory.mktemp("checkpoint")
    run = f"{W}:train_steps", "qwen3_moe", folders["qwen3_moe"], {}
    one_rank.run(*run, 2, save=str(path))
    weights = one_rank.run(*run, 4)[0]
    norms = one_rank.run(f"{W}:grad_norms", "qwen3_moe", folders["qwen3_moe"], {}, 2)[0]
    return str(path), weights, norms


def test_resuming_is_bit_exact(one_rank: RankPool, folders: dict[str, str], saved: Any) -> None:
    run = f"{W}:train_steps", "qwen3_moe", folders["qwen3_moe"], {}, 2
    got = one_rank.run(*run, load=saved[0])[0]
    for name, tensor in saved[1].items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("mesh", meshes("ep2 tp2-ep2", "dp2 tp2 tp2-etp2 pp2"))
def test_another_mesh_resumes(
    two_ranks: RankPool, folders: dict[str, str], saved: Any, mesh: dict[str, Any]
) -> None:
    run = f"{W}:train_steps", "qwen3_moe", folders["qwen3_moe"]
    got = two_ranks.run(*run, mesh, 2, load=saved[0])[0]
    for name, tensor in saved[1].items():
        # Adam divides by the root of tiny second moments: sums in another order show more there.
        assert (got[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


@pytest.mark.parametrize("mesh", meshes("ep2 tp2 tp2-etp2 pp2", "dp2 tp2-ep2"))
def test_the_gradient_norm_counts_every_expert_once(
    two_ranks: RankPool, folders: dict[str, str], saved: Any, mesh: dict[str, Any]
) -> None:
    norms = two_ranks.run(f"{W}:grad_norms", "qwen3_moe", folders["qwen3_moe"], mesh, 2)
    for found in norms:
        assert found == pytest.approx(saved[2], rel=1e-4)


def test_one_rank_reads_what_two_wrote(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    run, mesh = (f"{W}:train_steps", "qwen3_moe", folders["qwen3_moe"]), {"tensor": 2, "expert": 2}
    want = two_ranks.run(*run, mesh, 2, save=str(tmp_path))[0]
    got = one_rank.run(*run, {}, 0, load=str(tmp_path))[0]
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_experts_that_do_not_divide_are_refused(
    two_ranks: RankPool, folders: dict[str, str]
) -> None:
    message = two_ranks.run(f"{E}:refused", "qwen3_moe", folders["qwen3_moe"], {"expert": 2}, 7)
    assert message[0] == "model: 7 experts are not divisible by parallel.expert = 2."


@pytest.fixture(scope="module")
def balanced(one_rank: RankPool, folders: dict[str, str]) -> Any:
    """(loss and gradients with balancing on one rank, sums and biases of a step)."""
    folder = folders["qwen3_moe"]
    gradients = one_rank.run(
        f"{W}:gradients", "qwen3_moe", folder, {}, 4096, balance_coef=0.5, skip_zero_advantage="off"
    )
    return gradients[0], one_rank.run(f"{E}:balance", "qwen3_moe", folder, {}, 4096, False, **BIAS)[
        0
    ]


BIAS = {
    "balance_coef": 0.5,
    "balance_bias_rate": 0.01,
    "loss": PolicyLoss(tis_clip=2.0),
    "logprob_gap": LogprobGapConfig(max=9.0),
}


def test_the_balancing_loss_is_that_of_each_sequence(
    one_rank: RankPool, folders: dict[str, str]
) -> None:
    """Against a loop over sequences with transformers' router logits."""
    folder = folders["qwen3_moe"]
    want, gradients = one_rank.run(f"{E}:reference_balance", folder)[0]
    run = f"{W}:gradients", "qwen3_moe", folder, {}, 120, True, "all"
    _, got = one_rank.run(*run, balance_coef=0.25)[0]
    sums, _ = one_rank.run(f"{E}:balance", "qwen3_moe", folder, {}, 4096, False, balance_coef=0.25)[
        0
    ]
    assert sums["balance_loss_sum"] / sums["expert_layers"] == pytest.approx(want, rel=1e-5)
    compared = 0
    for name in gradients.keys() & got.keys():
        if "layers" in name and "norm" not in name:
            error = (got[name] / 0.25 - gradients[name]).norm() / gradients[name].norm()
            assert error <= 1e-4, f"{name}: {error:.2e}"
            compared += 1
    assert compared >= 4 * 5  # attention's four and the router, in each layer


@pytest.mark.parametrize(
    "share",
    [pytest.param(False, id="whole", marks=pytest.mark.slow), pytest.param(True, id="shared")],
)
@pytest.mark.parametrize("mesh", meshes("tp2-ep2 pp2 cp2 full", "dp2 ep2 tp2 tp2-etp2"))
def test_balancing_is_the_same_on_all_meshes(
    two_ranks: RankPool, folders: dict[str, str], balanced: Any, mesh: dict[str, Any], share: bool
) -> None:
    """Gradients of loss and balancing loss, loads, and the bias that follows from them."""
    run = "qwen3_moe", folders["qwen3_moe"], mesh, 120, share
    assert_same(two_ranks.run(f"{W}:gradients", *run, balance_coef=0.5)[0], balanced[0])
    found = two_ranks.run(f"{E}:balance", *run, **BIAS)
    for name in ("balance_loss_sum", "expert_layers", "expert_peak_sum", "expert_peak_max"):
        assert found[0][0][name] == pytest.approx(balanced[1][0][name], rel=1e-5), name
    last = 2 if "pipeline" in mesh else 4
    assert found[0][1] == balanced[1][1][:last]  # biases
    assert found[1][1] == balanced[1][1][-last:]


def test_the_bias_evens_out_the_load(one_rank: RankPool, folders: dict[str, str]) -> None:
    run = f"{E}:bias_at_work", "qwen3_moe", folders["qwen3_moe"]
    first, last = one_rank.run(*run, **{**BIAS, "balance_coef": 0.0})[0]
    assert last < 0.8 * first


def test_the_bias_is_resumed(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    run = f"{W}:train_steps", "qwen3_moe", folders["qwen3_moe"]
    two_ranks.run(*run, {"expert": 2}, 2, save=str(tmp_path), **BIAS)
    whole = one_rank.run(*run, {}, 3, **BIAS)[0]
    resumed = one_rank.run(*run, {}, 1, load=str(tmp_path), **BIAS)[0]
    for name, tensor in whole.items():
        assert (resumed[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
