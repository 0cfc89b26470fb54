"""The packing planner against Karmarkar-Karp in Python: seconds, and balance of log-normal lengths.

    python benchmarks/packing.py --out benchmarks/results/packing_cpu.json

The peers balance ranks, then each rank's micro-batches, by the largest differencing method of
Karmarkar and Karp in Python, on the cost of a sequence; they take the number of micro-batches from
the tokens and may exceed the token limit. `karmarkar_karp` is that method with nothing left out or
slowed down. Three of its uses are timed: `flat` (all micro-batches of all ranks at once),
`two_level` (ranks, then micro-batches) and `two_level_equal` (the same with equally many sequences
a rank, verl's default, which needs fewer merges). Both sides get the same number of micro-batches.

Balance is the largest cost over its lower bound, max(mean, largest single cost), for ranks and for
micro-batches. Where the peers' plan exceeds the token limit, which ours keeps, the two are not
compared but counted. The method breaks ties by an item's place in the list: both sides get it in
descending order. Timings are CPU seconds of the one thread, medians over interleaved repeats.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from passk_fast.data.packing import plan
from passk_fast.model.flops import ModelFlops
from passk_fast.model.shape import ModelShape
from passk_fast.provenance import machine

QWEN3_32B = Path(__file__).parents[1] / "configs" / "models" / "Qwen3-32B"

Groups = list[list[int]]
Plan = list[Groups]


Part = tuple[float, int, list[int]]
"""Sum, number of items and items: in this order, ties included, verl compares them too."""


class Partial:
    """A partial solution: `count` parts, largest first."""

    __slots__ = ("parts", "spread")

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.spread = parts[0][0] - parts[-1][0]

    def __lt__(self, other: Partial) -> bool:
        if self.spread != other.spread:
            return self.spread > other.spread
        return self.parts[0] > other.parts[0]

    def merged(self, other: Partial) -> Partial:
        """Largest with smallest, and so on."""
        parts = [
            (a[0] + b[0], a[1] + b[1], a[2] + b[2] if b[2] else a[2])
            for a, b in zip(self.parts, reversed(other.parts), strict=True)
        ]
        parts.sort(reverse=True)
        return Partial(parts)


def karmarkar_karp(costs: Sequence[float], count: int, *, equal: bool = False) -> Groups:
    """Indices of `costs` in `count` groups; with `equal` of the same size, if they divide so."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], i))
    if equal:
        starts = [order[at : at + count] for at in range(0, len(order), count)]
    else:
        starts = [[i] for i in order]
    heap = []
    for start in starts:
        parts: list[Part] = [(costs[i], 1, [i]) for i in reversed(start)]
        heap.append(Partial(parts + [(0, 0, [])] * (count - len(parts))))
    heapq.heapify(heap)
    while len(heap) > 1:
        first = heapq.heappop(heap)
        heapq.heapreplace(heap, first.merged(heap[0]))
    return [sorted(indices) for _, _, indices in heap[0].parts]


def two_level(costs: Sequence[float], ranks: int, micros: int, *, equal: bool = False) -> Plan:
    """The peers' way: ranks first, then the micro-batches of each."""
    out = []
    for rank in karmarkar_karp(costs, ranks, equal=equal):
        inner = karmarkar_karp([costs[i] for i in rank], micros)
        out.append([[rank[i] for i in group] for group in inner])
    return out


def flat(costs: Sequence[float], ranks: int, micros: int) -> Plan:
    """All micro-batches of all ranks at once, then dealt out to the ranks in turns."""
    groups = karmarkar_karp(costs, ranks * micros)
    groups.sort(key=lambda group: -sum(costs[i] for i in group))
    dealt: Plan = [[] for _ in range(ranks)]
    for at, group in enumerate(groups):
        turn, place = divmod(at, ranks)
        dealt[place if turn % 2 == 0 else ranks - 1 - place].append(group)
    return dealt


def balance(plan_: Plan, costs: Sequence[float]) -> dict[str, float]:
    """Largest cost over its lower bound, for ranks and for micro-batches."""
    bins = [sum(costs[i] for i in bin_) for rank in plan_ for bin_ in rank]
    ranks = [sum(costs[i] for bin_ in rank for i in bin_) for rank in plan_]
    largest = max(costs)
    return {
        "ranks": max(ranks) / max(sum(ranks) / len(ranks), largest),
        "micro_batches": max(bins) / max(sum(bins) / len(bins), largest),
    }


def log_normal(count: int, seed: int, *, median: float, sigma: float, limit: int) -> list[int]:
    """Lengths in tokens, cut at `limit`."""
    draws = np.random.default_rng(seed).lognormal(np.log(median), sigma, count)
    return [int(x) for x in np.clip(draws, 1, limit)]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds of the one thread, result): other processes do not count."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def speed(count: int, ranks: int, micros: int, repeats: int) -> dict[str, Any]:
    """100,000 sequences over 64 ranks x 8 micro-batches, all methods."""
    lengths = log_normal(count, 0, median=1500, sigma=0.8, limit=16384)
    linear, quadratic = ModelFlops.of(ModelShape.read(QWEN3_32B)).balance_coefficients()
    costs = [linear * n + quadratic * n * n for n in lengths]
    limit = int(sum(lengths) / ranks / micros * 1.1)
    methods: dict[str, Callable[[], Plan]] = {
        "ours_tokens": lambda: plan(lengths, ranks, limit),
        "ours": lambda: plan(lengths, ranks, limit, linear=linear, quadratic=quadratic),
        "two_level": lambda: two_level(costs, ranks, micros),
        "two_level_equal": lambda: two_level(costs, ranks, micros, equal=True),
        "flat": lambda: flat(costs, ranks, micros),
    }
    rows: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats):
        for name, method in methods.items():
            if name == "flat" and repeat:
                continue
            seconds, made = timed(method)
            times[name].append(seconds)
            assert {len(rank) for rank in made} == {micros}
            used = [float(n) for n in lengths] if name == "ours_tokens" else costs
            rows[name] = {"balance": balance(made, used)}
    for name, row in rows.items():
        row["seconds"] = statistics.median(times[name])
        row["all_seconds"] = times[name]
        row["times_ours"] = row["seconds"] / statistics.median(times["ours"])
    return {"sequences": count, "ranks": ranks, "micro_batches": micros, "methods": rows}


def compare(cases: int) -> dict[str, Any]:
    """Balance of ours and the peers' over many small batches, same counts; how often we lose."""
    rng = np.random.default_rng(1)
    linear, quadratic = ModelFlops.of(ModelShape.read(QWEN3_32B)).balance_coefficients()
    rows: list[dict[str, Any]] = []
    while len(rows) < cases:
        ranks, each = int(rng.integers(1, 17)), int(rng.integers(1, 9))
        per_bin = int(rng.integers(2, 40))
        count = ranks * each * per_bin
        lengths = log_normal(count, len(rows), median=1500, sigma=0.8, limit=16384)
        lengths.sort(reverse=True)
        limit = max(16384, int(sum(lengths) / ranks / each * 1.2))
        use = (linear, quadratic) if len(rows) % 2 else (1.0, 0.0)
        ours = plan(lengths, ranks, limit, linear=use[0], quadratic=use[1])
        costs = [use[0] * n + use[1] * n * n for n in lengths]
        row: dict[str, Any] = {"ours": balance(ours, costs)}
        for name, equal in (("two_level", False), ("two_level_equal", True)):
            theirs = two_level(costs, ranks, len(ours[0]), equal=equal)
            if max(sum(lengths[i] for i in b) for rank in theirs for b in rank) <= limit:
                row[name] = balance(theirs, costs)
        rows.append(row)
    return summarise(rows)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of wins and losses against each method, and distributions of the balance."""
    out: dict[str, Any] = {"cases": len(rows)}
    for name in ("two_level", "two_level_equal"):
        both = [row for row in rows if name in row]
        out[name] = {"exceeds_limit": len(rows) - len(both)}
        for key in ("ranks", "micro_batches"):
            ratios = [row["ours"][key] / row[name][key] for row in both]
            out[name][key] = {
                "ours": distribution([row["ours"][key] for row in both]),
                "theirs": distribution([row[name][key] for row in both]),
                "we_are_better": sum(ratio < 1 - 1e-9 for ratio in ratios),
                "we_are_worse": sum(ratio > 1 + 1e-9 for ratio in ratios),
                "worst_ratio": max(ratios),
            }
    return out


def distribution(values: list[float]) -> dict[str, float]:
    """Mean and largest."""
    return {"mean": statistics.fmean(values), "max": max(values)}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", type=int, default=1200)
    parser.add_argument("--sequences", type=int, default=100_000)
    args = parser.parse_args()
    result = {
        "machine": {**machine(["numpy"]), "threads": 1},
        "speed": speed(args.sequences, 64, 8, args.repeats),
        "compare": compare(args.cases),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
