"""K1, K2 and K3 with the vocabulary sharded over 1, 2 and 4 ranks (gloo) against whole float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels import cases
from tests.ranks import RankPool

W = "tests.kernels.cases"
SHAPES = {"rows": 28, "hidden": 24, "padded": 56, "vocab": 41}  # the fourth shard is all padding


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[RankPool]:
    with RankPool(4, env={"TRITON_INTERPRET": "1"}) as pool:
        yield pool


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "interpreted"),
    [
        ("clip", False),
        ("gspo", False),
        ("entropy-bonus", False),
        ("clip", True),
        ("soft-cap", False),
    ],
)
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["replicated", "sequence"])
def test_shards_equal_the_whole(
    four_ranks: RankPool, size: int, name: str, interpreted: bool, sequence_parallel: bool
) -> None:
    if interpreted:
        pytest.importorskip("triton")
    options = cases.FAMILY[name]
    want = cases.float64_answers(SHAPES, options)
    results = four_ranks.run(f"{W}:sharded", size, options, interpreted, sequence_parallel, SHAPES)
    assert [r is None for r in results] == [rank >= size for rank in range(4)]
    for got in results[:size]:
        cases.assert_hidden(got, want["hidden"])
        assert cases.frobenius(got["logits"], want["logits"]["logits"]) <= 3e-6
        assert abs(float(got["logits_loss"]) - float(want["logits"]["loss"])) <= 3e-6
        assert float((got["logp"] - want["logp"][0]).abs().max()) <= 5e-6
        assert float((got["entropy"] - want["logp"][1]).abs().max()) <= 1e-4
