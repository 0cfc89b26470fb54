"""Which rows are computed, and in which chunks: each informative row once, on every rank alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.kernels import informative_rows
from passk_fast.kernels.row_plan import Chunk, plan_chunks
from passk_fast.kernels.shard import Shard, as_temperature, shard_of

CPU = torch.device("cpu")


def shard(rank: int = 0, size: int = 1) -> Shard:
    """A rank's columns; its group is never used."""
    return Shard(group=None, first=0, num_columns=8, vocab=8, rank=rank, size=size)


def chunks(index: torch.Tensor, rows: int, parts: int, limit: int, rank: int = 0) -> list[Chunk]:
    return plan_chunks(index, rows, shard(rank, parts), parts, limit, CPU)


@st.composite
def plans(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    """(rows to compute, all rows, parts, rows per chunk)."""
    parts = draw(st.sampled_from([1, 2, 4]))
    rows = parts * draw(st.integers(1, 12))
    chosen = draw(st.sets(st.integers(0, rows - 1)))
    limit = draw(st.integers(1, 20))
    return torch.tensor(sorted(chosen), dtype=torch.int64), rows, parts, limit


def test_informative_rows_are_in_the_mask_and_have_an_advantage() -> None:
    mask = torch.tensor([True, True, False, True])
    advantages = torch.tensor([0.0, 2.0, 3.0, -1.0])
    assert informative_rows(mask, advantages).tolist() == [1, 3]
    assert informative_rows(mask, torch.zeros(4)).tolist() == []


def test_counting_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="must be CPU tensors"):
        informative_rows(torch.ones(2, dtype=torch.bool), torch.ones(2, device="meta"))


@given(plans())
def test_every_row_is_in_one_chunk(plan: tuple[torch.Tensor, int, int, int]) -> None:
    index, rows, parts, limit = plan
    found = [row for chunk in chunks(*plan) for row in chunk.rows[chunk.valid].tolist()]
    assert sorted(found) == index.tolist()
    assert all(len(chunk.rows) <= max(limit, parts) for chunk in chunks(*plan))
    for chunk in chunks(*plan):
        assert (chunk.rows[~chunk.valid] == 0).all()
        assert (chunk.slots[~chunk.valid] == rows).all(), "the slot behind the last row"
        assert (chunk.slots[chunk.valid] == chunk.rows[chunk.valid]).all()


@given(plans())
def test_ranks_make_chunks_of_one_size_and_know_their_own_rows(
    plan: tuple[torch.Tensor, int, int, int],
) -> None:
    index, rows, parts, limit = plan
    each = rows // parts
    ranks = [chunks(index, rows, parts, limit, rank) for rank in range(parts)]
    assert len({len(found) for found in ranks}) == 1
    for same in zip(*ranks, strict=True):
        assert len({len(chunk.local) for chunk in same}) == 1
        gathered = torch.cat([chunk.local_slots for chunk in same])
        for rank, chunk in enumerate(same):
            assert torch.equal(chunk.rows, same[0].rows)
            mine = chunk.local[chunk.local_slots < each] + (rank * each if parts > 1 else 0)
            assert set(mine.tolist()) <= set(index.tolist())
        assert int((gathered < each).sum()) == int(same[0].valid.sum())


def test_no_rows_make_no_chunks() -> None:
    assert chunks(torch.zeros(0, dtype=torch.int64), 8, 1, 4) == []


# ---- shards of the vocabulary ----------------------------------------------------------------


def test_one_rank_holds_the_whole_vocabulary() -> None:
    alone = shard_of(16, None, 11)
    assert (alone.first, alone.num_columns, alone.vocab, alone.size) == (0, 11, 11, 1)
    assert shard_of(16, None, None).num_columns == 16


@pytest.mark.parametrize("vocab", [0, 17])
def test_a_vocabulary_that_does_not_fit(vocab: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab must be in 1\.\.16 .*, got {vocab}"):
        shard_of(16, None, vocab)


def test_targets_are_owned_by_one_shard() -> None:
    targets = torch.tensor([0, 7, 8, 10, 15])
    shards = [Shard(None, first, 8, 16, rank, 2) for rank, first in enumerate((0, 8))]
    owned = torch.stack([one.owned(targets)[0] for one in shards])
    assert owned.sum(dim=0).tolist() == [1] * 5
    assert shards[1].owned(targets)[1].tolist() == [0, 0, 0, 2, 7]


def test_padding_columns_are_owned_by_nobody() -> None:
    padded = Shard(None, 8, 3, 11, 1, 2)
    assert padded.owned(torch.tensor([10, 11]))[0].tolist() == [True, False]


def test_collectives_of_one_rank_do_nothing() -> None:
    values = torch.tensor([1.0, 2.0])
    assert shard().sum(values) is None
    shard().max(values)
    assert values.tolist() == [1.0, 2.0]


# ---- temperatures ----------------------------------------------------------------------------


def test_a_temperature_is_a_number_or_one_per_row() -> None:
    assert as_temperature(2, 3, CPU) == 2.0
    rows = torch.tensor([1.0, 0.5, 2.0])
    assert as_temperature(rows, 3, CPU) is rows


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_number_that_is_no_temperature(value: float) -> None:
    with pytest.raises(ValueError, match="finite and above zero"):
        as_temperature(value, 3, CPU)


def test_rows_that_are_no_temperatures() -> None:
    with pytest.raises(ValueError, match=r"\[T\] = \[3\], got \(2,\)"):
        as_temperature(torch.ones(2), 3, CPU)
    with pytest.raises(ValueError, match="above zero in every row"):
        as_temperature(torch.tensor([1.0, 0.0, 1.0]), 3, CPU)
    with pytest.raises(ValueError, match="temperature is on meta"):
        as_temperature(torch.ones(3, device="meta"), 3, CPU)
