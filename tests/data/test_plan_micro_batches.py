"""The plan of micro-batches: nothing lost, nothing twice, limits kept, costs even."""

from __future__ import annotations

import runpy
from pathlib import Path
from random import Random
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passk_fast import native
from passk_fast.config import ShapeConfig
from passk_fast.data.packing import plan, unit_pairs
from passk_fast.model.flops import ModelFlops, Work
from passk_fast.model.shape import ModelShape
from tests.data.test_packing import sequence


@given(
    st.lists(st.integers(0, 64), max_size=60),
    st.integers(1, 5),
    st.integers(64, 200),
    st.integers(1, 4),
    st.sampled_from([(1.0, 0.0), (0.0, 1.0), (100.0, 1.0), (0.0, 0.0)]),
)
def test_the_plan_holds_everything_once(
    lengths: list[int], ranks: int, limit: int, divisor: int, costs: tuple[float, float]
) -> None:
    got = plan(lengths, ranks, limit, divisor, linear=costs[0], quadratic=costs[1])
    assert len(got) == ranks
    assert len({len(bins) for bins in got}) == 1
    assert len(got[0]) % divisor == 0
    assert sorted(i for bins in got for bin_ in bins for i in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in bin_) <= limit for bins in got for bin_ in bins)


def first_fit_decreasing(lengths: list[int], limit: int) -> int:
    """Micro-batches that the textbook method needs."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = next((i for i, left in enumerate(room) if left >= length), None)
        if at is None:
            room.append(limit - length)
        else:
            room[at] -= length
    return len(room)


@given(st.lists(st.integers(1, 64), max_size=80), st.integers(1, 5), st.integers(64, 200))
def test_there_are_no_more_micro_batches_than_first_fit_needs(
    lengths: list[int], ranks: int, limit: int
) -> None:
    got = plan(lengths, ranks, limit)
    assert len(got[0]) <= max(1, -(-first_fit_decreasing(lengths, limit) // ranks))


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(1, 5), st.randoms())
def test_the_order_of_the_list_does_not_change_the_costs(
    lengths: list[int], ranks: int, random: Random
) -> None:
    shuffled = list(lengths)
    random.shuffle(shuffled)
    one, other = (
        [[sum(of[i] for i in bin_) for bin_ in bins] for bins in plan(of, ranks, 150)]
        for of in (lengths, shuffled)
    )
    assert one == other


def largest(got: list[list[list[int]]], costs: list[float]) -> tuple[float, float]:
    """Costs of the costliest rank and of the costliest micro-batch, each over its lower bound."""
    bins = [[sum(costs[i] for i in bin_) for bin_ in bins] for bins in got]
    ranks = [sum(rank) for rank in bins]
    bound = max(sum(ranks) / len(ranks), max(costs))
    bin_bound = max(sum(ranks) / len(ranks) / len(bins[0]), max(costs))
    return max(ranks) / bound, max(map(max, bins)) / bin_bound


@pytest.mark.parametrize(("count", "ranks"), [(400, 4), (3000, 8), (20_000, 16), (100_000, 64)])
@pytest.mark.parametrize("quadratic", [0.0, 1 / 24_576])
def test_log_normal_lengths_are_balanced_to_two_percent(
    count: int, ranks: int, quadratic: float
) -> None:
    draws = np.random.default_rng(count).lognormal(np.log(1500), 0.8, count)
    lengths = [int(x) for x in np.clip(draws, 1, 16384)]
    limit = max(16384, int(sum(lengths) / ranks / 8 * 1.1))
    got = plan(lengths, ranks, limit, linear=1.0, quadratic=quadratic)
    costs = [n + quadratic * n * n for n in lengths]
    assert max(largest(got, costs)) <= 1.02


@pytest.mark.parametrize("seed", range(24))
def test_balance_is_that_of_differencing_on_both_levels_or_better(seed: int) -> None:
    """Against the peers' method as the benchmark has it; 1e-9 is for the order of sums."""
    peers = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/packing.py"))
    rng = np.random.default_rng(seed)
    ranks, micros = int(rng.integers(1, 9)), int(rng.integers(1, 7))
    count = ranks * micros * int(rng.integers(1, 20))
    lengths = [int(x) for x in np.clip(rng.lognormal(np.log(1500), 0.8, count), 1, 16384)]
    costs = [n + n * n / 24_576 for n in lengths]
    got = plan(
        lengths, ranks, max(16384, 2 * sum(lengths) // ranks // micros), quadratic=1 / 24_576
    )
    for equal in (False, True):
        theirs = peers["two_level"](costs, ranks, len(got[0]), equal=equal)
        for mine, other in zip(largest(got, costs), largest(theirs, costs), strict=True):
            assert mine <= other * (1 + 1e-9)


@given(
    st.lists(st.integers(1, 10**6), min_size=4, max_size=40), st.integers(1, 4), st.integers(1, 3)
)
def test_no_even_division_of_few_sequences_is_missed_by_much(
    lengths: list[int], ranks: int, micros: int
) -> None:
    """Longest first to the least loaded is within 4/3 of the best; so must this be, per rank."""
    limit = max(max(lengths), -(-2 * sum(lengths) // (ranks * micros)))
    got = plan(lengths, ranks, limit)
    loads = [0] * ranks
    for length in sorted(lengths, reverse=True):
        loads[loads.index(min(loads))] += length
    assert max(sum(lengths[i] for bin_ in bins for i in bin_) for bins in got) <= max(loads)


def test_costs_are_what_is_balanced() -> None:
    """One long sequence costs as much as four of half its length when only pairs count."""
    got = plan([8, 4, 4, 4, 4], 2, 16, linear=0.0, quadratic=1.0)
    assert sorted(sorted(i for bin_ in bins for i in bin_) for bins in got) == [[0], [1, 2, 3, 4]]
    given_pairs = plan([8, 4, 4, 4, 4], 2, 24, linear=0.0, quadratic=1.0, pairs=[1, 1, 1, 1, 4])
    assert [4] in [sorted(i for bin_ in bins for i in bin_) for bins in given_pairs]


def test_a_tight_limit_is_kept_though_balance_asks_otherwise() -> None:
    """Six of 5 and six of 4 tokens fill three micro-batches of 18 a rank in one way only."""
    lengths = [5, 4] * 6
    got = plan(lengths, 2, 9, quadratic=1.0)
    assert [sorted(lengths[i] for i in bin_) for bins in got for bin_ in bins] == [[4, 5]] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 65], 1, 64), "sequence 1 of 65 tokens exceeds max_tokens = 64"),
        (([3, -1], 1, 64), "sequence 1 of -1 tokens is shorter than nothing"),
        (([3], 0, 64), "data_size = 0"),
        (([3], 1, 0), "max_tokens = 0"),
        (([3], 1, 64, 0), "divisor = 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


def test_costs_must_be_numbers() -> None:
    with pytest.raises(ValueError, match=r"sequence 0 costs -?nan"):
        plan([3], 1, 64, linear=float("nan"))
    with pytest.raises(ValueError, match="2 pairs for 1 lengths"):
        plan([3], 1, 64, pairs=[1, 2])


def test_planning_lets_other_threads_run() -> None:
    """The GIL is released: a thread goes on counting while 100,000 sequences are planned."""
    lengths = np.random.default_rng(0).integers(1, 16384, 200_000)
    done, counted = Event(), []

    def count() -> None:
        while not done.is_set():
            counted.append(perf_counter())

    thread = Thread(target=count)
    thread.start()
    start = perf_counter()
    native.plan_micro_batches(lengths, lengths, 64, 10**8, 1, 1.0, 0.0)
    stop = perf_counter()
    done.set()
    thread.join()
    inside = [at for at in counted if start < at < start + 0.5 * (stop - start)]
    assert len(inside) > 10


def test_a_sequence_costs_its_flops() -> None:
    """Up to the diagonal of the attention matrix, as model.flops counts a whole sequence."""
    sizes = ShapeConfig(head_dim=8, hidden_size=24, intermediate_size=40, num_layers=3)
    flops = ModelFlops.of(ModelShape.of(sizes, vocab=100))
    linear, quadratic = flops.balance_coefficients()
    length = 6
    diagonal = Work(pairs=length * (length + 1) // 2 - length * length / 2)
    whole = Work(tokens=length, scored=length, pairs=length * (length + 1) // 2)
    count = flops.forward
    assert linear * length + quadratic * length**2 == count(whole) - count(diagonal)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6))
def test_pairs_of_a_unit_are_counted_once(shapes: list[tuple[int, int]]) -> None:
    """Against the attention mask of the packed unit, entry by entry."""
    prompt = 5
    sequences = [sequence(prompt, response, 7) for _, response in shapes]
    if not sequences:
        return
    causal = (prompt - 1) ** 2 / 2
    for s in sequences:
        own = s.response_length
        causal += own * (prompt - 1) + own * own / 2
    assert unit_pairs(sequences, range(len(sequences))) == 2 * causal
