"""Shapes in signatures are enforced in this process and on the ranks that tests start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.ranks import RankError, RankPool
from tests.shapes import has_shape, hooked_modules


def call_with_a_wrong_shape() -> None:
    from passk_fast.advantage.table import eta

    eta(np.zeros((3, 3)))


def test_a_wrong_argument_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="estimator_table"):
        call_with_a_wrong_shape()


def test_a_wrong_element_type_is_refused() -> None:
    from passk_fast.advantage.table import eta

    with pytest.raises(TypeCheckError, match="estimator_table"):
        eta(np.zeros((3, 2), dtype=np.float32))


def test_axes_of_one_name_must_agree_with_the_result() -> None:
    from passk_fast.advantage.gaps import GapWeights, advantages_of

    weights = GapWeights(base=0.0, up_T=np.zeros(1), down_T=np.zeros(1))
    assert advantages_of(weights, np.zeros((4, 2))).shape == (4, 2)
    with pytest.raises(TypeCheckError, match="down_T"):
        GapWeights(base=0.0, up_T=np.zeros(1), down_T=np.zeros(2))


def test_rows_of_the_kernels_must_agree() -> None:
    from passk_fast.kernels import LossRows

    ones = torch.ones(3)
    rows = {"targets": ones.long(), "advantages": ones, "mask": ones.bool()}
    assert LossRows(**rows, denominator=1.0).targets.shape == (3,)
    with pytest.raises(TypeCheckError, match="LossRows"):
        LossRows(**{**rows, "mask": torch.ones(4, dtype=torch.bool)}, denominator=1.0)


def test_ranks_refuse_it_too() -> None:
    with RankPool(1) as pool, pytest.raises(RankError, match="estimator_table"):
        pool.run(f"{__name__}:call_with_a_wrong_shape")


def test_what_has_a_shape() -> None:
    assert has_shape(Float[Tensor, "T D"])
    assert has_shape(list[tuple[int, Float[Tensor, " T"] | None]])
    assert not has_shape(list[tuple[int, Tensor | None]])
    assert "passk_fast.advantage.table" in hooked_modules()


def test_kernels_refuse_it_too() -> None:
    """They name shapes through a module of their own, so that torch alone suffices."""
    from passk_fast.kernels import informative_rows

    assert informative_rows(torch.ones(3).bool(), torch.ones(3)).shape == (3,)
    with pytest.raises(TypeCheckError, match="advantages"):
        informative_rows(torch.ones(3).bool(), torch.ones(4))
