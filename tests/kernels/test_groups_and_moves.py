"""Group advantages, hole filling, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import passk_fast.kernels as kernels
from passk_fast.advantage.table import advantages, table, zero_advantage_rows
from passk_fast.kernels import LossRows, OutputLogits, reference
from passk_fast.kernels.engines import hole_moves
from tests.kernels import cases
from tests.ranks import RankPool


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 3), (16, 8), (33, 4)])
def test_group_advantage_is_the_table(n: int, k: int) -> None:
    lookup = torch.tensor(table("passk", n, k))
    correct = torch.rand(40, n) < torch.linspace(0, 1, 40)[:, None]
    advantage, informative = kernels.group_advantage(correct, lookup)
    assert advantage.dtype == torch.float32
    want = advantages("passk", correct.double().numpy(), k)
    torch.testing.assert_close(advantage.double().numpy(), want, rtol=1e-7, atol=0)
    zero = torch.from_numpy(zero_advantage_rows(table("passk", n, k)))[correct.sum(dim=1)]
    assert torch.equal(informative, ~zero)
    exact, alive = reference.group_advantage(correct, lookup)
    assert torch.equal(exact, torch.from_numpy(want))
    assert torch.equal(alive, informative)


def test_group_advantage_too_small_for_float32_stays_informative() -> None:
    lookup = torch.tensor([[0.0, 0.0], [-1e-60, 1e-50], [0.0, 0.0]], dtype=torch.float64)
    advantage, informative = kernels.group_advantage(torch.tensor([[True, False]]), lookup)
    assert informative.tolist() == [True]
    assert advantage[0, 0] > 0 > advantage[0, 1]


def interpreted_groups() -> list[Any]:
    """Group advantages through the interpreter, for a worker."""
    with cases.interpreted(True):
        out = []
        for n, k in ((2, 1), (5, 3), (16, 8), (33, 4)):
            correct = torch.rand(9, n, generator=torch.Generator().manual_seed(n)) < 0.4
            strided = torch.empty(n, 9, dtype=torch.bool).T.copy_(correct)
            lookup = torch.tensor(table("passk", n, k))
            out.append((correct, kernels.group_advantage(strided, lookup)))
        return out


def test_group_advantage_interpreted() -> None:
    pytest.importorskip("triton")
    with RankPool(1, env={"TRITON_INTERPRET": "1"}) as pool:
        results = pool.run("tests.kernels.test_groups_and_moves:interpreted_groups")[0]
    for (n, k), (correct, (advantage, informative)) in zip(
        ((2, 1), (5, 3), (16, 8), (33, 4)), results, strict=True
    ):
        want, alive = reference.group_advantage(correct, torch.tensor(table("passk", n, k)))
        torch.testing.assert_close(advantage.double(), want, rtol=1e-7, atol=0)
        assert torch.equal(informative, alive)


@given(keep=st.lists(st.booleans(), min_size=1, max_size=40))
def test_hole_moves_bring_kept_rows_forward(keep: list[bool]) -> None:
    flags = torch.tensor(keep)
    place, source, count = hole_moves(flags)
    assert int(count) == flags.sum()
    assert sorted(place.tolist()) == list(range(len(keep)))
    rows = torch.arange(len(keep))
    moved = torch.where(source >= 0, rows[source.clamp(min=0).long()], rows)
    kept = moved[: int(count)]
    assert sorted(kept.tolist()) == rows[flags].tolist()
    assert torch.equal(moved[place[flags]], rows[flags])  # each row is where `place` says
    assert int((source >= 0).sum()) == int((~flags[: int(count)]).sum())  # no needless copy


BAD: list[tuple[str, str, Any]] = [
    ("hidden", "hidden", lambda d: d["hidden"].half()),
    ("hidden", "hidden", lambda d: d["hidden"][None]),
    ("hidden", "hidden", lambda d: d["hidden"].T.contiguous().T),
    ("weight", "weight", lambda d: d["weight"][:, :-1].contiguous()),
    ("weight", "weight", lambda d: d["weight"].double()),
    ("weight", "weight", lambda d: d["weight"].to("meta")),
    ("weight", "weight", lambda d: d["weight"][:0]),
    ("targets", "targets", lambda d: d["targets"].float()),
    ("targets", "targets", lambda d: d["targets"][:-1]),
    ("targets", "targets", lambda d: d["targets"] + 97),
    ("targets", "targets", lambda d: d["targets"] - 98),
    ("mask", "mask", lambda d: d["mask"].float()),
    ("old_logp", "old_logp", lambda d: d["old_logp"][1:]),
    ("old_logp", "old_logp", lambda d: d["old_logp"].repeat_interleave(2)[::2]),
    ("advantages", "advantages", lambda d: d["advantages"].long()),
    ("advantages", "advantages", lambda d: d["advantages"].tolist()),
    ("sequence_index", "sequence_index", lambda d: d["sequence_index"].float()),
    ("temperature", "temperature", lambda d: 0.0),
    ("temperature", "temperature", lambda d: torch.ones(3)),
    ("vocab", "vocab", lambda d: 10_000),
    ("denominator", "denominator", lambda d: 0.0),
    ("memory_gib", "memory_gib", lambda d: 1e-9),
    ("first_gemm", "first_gemm", lambda d: "magic"),
    ("soft_cap", "soft_cap", lambda d: -30.0),
    ("filter_eps", "filter_eps", lambda d: -1.0),
    ("row_index", "row_index", lambda d: torch.tensor([500])),
    ("row_index", "row_index", lambda d: torch.tensor([1], dtype=torch.int32)),
    ("main_grad", "main_grad", lambda d: torch.zeros(3, 24)),
    ("main_grad", "main_grad", lambda d: torch.zeros(104, 24, dtype=torch.bfloat16)),
]


@pytest.mark.parametrize(("name", "word", "change"), BAD)
def test_bad_input_names_the_argument(name: str, word: str, change: Any) -> None:
    data = cases.problem()
    data[name] = change(data)
    with pytest.raises((ValueError, TypeError), match=word):
        cases.call_hidden(kernels.linear_policy_loss, data)


@pytest.mark.parametrize(
    ("correct", "lookup", "word"),
    [
        (torch.ones(3, 4), torch.zeros(5, 2), "correct"),
        (torch.ones(4, dtype=torch.bool), torch.zeros(5, 2), "correct"),
        (torch.ones(3, 4, dtype=torch.bool), torch.zeros(4, 2), "table"),
        (torch.ones(3, 4, dtype=torch.bool), torch.zeros(5, 2, dtype=torch.int64), "table"),
    ],
)
def test_bad_groups(correct: torch.Tensor, lookup: torch.Tensor, word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        kernels.group_advantage(correct, lookup)


def test_a_soft_cap_refuses_the_fused_gemm_by_name() -> None:
    data = cases.problem() | {"soft_cap": 30.0, "first_gemm": "fused"}
    with pytest.raises(ValueError, match=r"first_gemm = 'fused' has no soft cap.*take 'auto'"):
        cases.call_hidden(kernels.linear_policy_loss, data)


def test_bad_logits() -> None:
    rows = LossRows(**cases.taken(cases.problem(), LossRows))
    with pytest.raises((ValueError, TypeError), match="logits"):
        kernels.policy_loss(OutputLogits(logits=torch.zeros(97, 33).T), rows)
    with pytest.raises((ValueError, TypeError), match="targets"):
        kernels.policy_loss(OutputLogits(logits=torch.zeros(33, 50)), rows)
    with pytest.raises(TypeError, match="logits"):
        kernels.policy_loss(OutputLogits(logits=torch.zeros(33, 97, dtype=torch.int64)), rows)
