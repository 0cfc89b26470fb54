"""The Triton kernels through Triton's interpreter against float64, over drawn shapes and edges.

One worker process has the interpreter on: kernels are decorated for it when they are imported.
Tiles are 16 wide there, so the drawn shapes cover whole and partial tiles, one row and many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import cases
from tests.ranks import RankPool

pytest.importorskip("triton")
W = "tests.kernels.cases"
SHAPES = {"rows": 19, "hidden": 20, "padded": 40, "vocab": 37}


@pytest.fixture(scope="module")
def worker() -> Iterator[RankPool]:
    with RankPool(1, env={"TRITON_INTERPRET": "1"}) as pool:
        yield pool


def check(
    worker: RankPool, shapes: dict[str, int], options: dict[str, Any], change: str, gemm: str
) -> dict[str, Any]:
    """Losses and gradients to 3e-6, log-probs 5e-6 and entropies 1e-4 absolute: float32."""
    got = worker.run(f"{W}:interpreter_case", shapes, options, change, gemm)[0]
    want = cases.float64_answers(shapes, options, change)
    # Logits near -200 in float32 are off by up to 1.5e-5 each.
    scale = 10.0 if change == "logits -200" else 1.0
    cases.assert_hidden(got["hidden"], want["hidden"], 3e-6 * scale)
    error = float((got["logits"]["logits"] - want["logits"]["logits"]).abs().max())
    slope = float(want["logits"]["logits"].abs().max())
    assert error <= 5e-6 * scale * max(slope, 1e-3)
    if change != "logits -200":
        cases.assert_metrics(got["logits"]["metrics"], want["logits"]["metrics"])
    assert float((got["logp"][0] - want["logp"][0]).abs().max()) <= 5e-6 * scale
    assert float((got["logp"][1] - want["logp"][1]).abs().max()) <= 1e-4
    return got


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 37),
    hidden=st.sampled_from([4, 12, 16, 36]),
    vocab=st.integers(2, 50),
    padding=st.integers(0, 9),
    name=st.sampled_from(["clip", "temperature", "row-temperature"]),
    gemm=st.sampled_from(["fused", "blas"]),
)
def test_drawn_shapes(
    worker: RankPool, rows: int, hidden: int, vocab: int, padding: int, name: str, gemm: str
) -> None:
    shapes = {"rows": rows, "hidden": hidden, "padded": vocab + padding, "vocab": vocab}
    check(worker, shapes, cases.FAMILY[name], "", gemm)


@pytest.mark.parametrize(
    "name",
    [
        "on-policy",
        "dual-clip",
        "tis",
        "k3",
        "entropy-bonus",
        "gspo",
        "soft-cap",
        "soft-cap-30",
        "soft-cap-entropy",
    ],
)
def test_loss_family(worker: RankPool, name: str) -> None:
    check(worker, SHAPES, cases.FAMILY[name], "", "fused")


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.FAMILY)
@pytest.mark.parametrize("gemm", ["fused", "blas"])
def test_whole_loss_family(worker: RankPool, name: str, gemm: str) -> None:
    shapes = {"rows": 33, "hidden": 20, "padded": 88, "vocab": 83}
    check(worker, shapes, cases.FAMILY[name], "", gemm)


@pytest.mark.parametrize("change", ["no advantage", "all masked", "ratio 100", "logits -200"])
def test_edge_cases(worker: RankPool, change: str) -> None:
    got = check(worker, SHAPES, {}, change, "fused")
    assert float(got["hidden"]["metrics"]["softmax_fallback_rows"]) == (
        3 if change == "ratio 100" else 0
    )
    if change in ("no advantage", "all masked"):
        assert not got["hidden"]["weight"].any()
