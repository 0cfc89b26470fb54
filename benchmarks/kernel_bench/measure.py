"""Times, floors and memory, on a GPU by CUDA events and on a CPU by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernel_bench.problems import Shape

Call = Callable[[], object]
FLOOR_CALLS = 15


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


class Span:
    """One timed call; `milliseconds` is valid after a synchronisation."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._ends: list[Any] = []

    def run(self, call: Call) -> None:
        """Call between two marks."""
        self._mark()
        call()
        self._mark()

    def _mark(self) -> None:
        if self.device != "cuda":
            self._ends.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._ends.append(event)

    @property
    def milliseconds(self) -> float:
        start, end = self._ends
        if self.device != "cuda":
            return 1e3 * (end - start)
        return float(start.elapsed_time(end))


def one(call: Call, device: str) -> float:
    """Milliseconds of one call, waited for."""
    span = Span(device)
    span.run(call)
    sync(device)
    return span.milliseconds


def interleaved(
    calls: dict[str, tuple[Call, Call]], device: str, *, warm: int, timed: int, cap_s: float
) -> dict[str, dict[str, float]]:
    """Median, p20, p80 in ms and the count of every call, run in turn.

    Each entry is (preparation outside the clock, call). A call that would need more than `cap_s` in
    all is timed fewer times, at least 5; its count says so.
    """
    plan: dict[str, int] = {}
    for name, (prepare, call) in calls.items():
        prepare()
        one(call, device)  # compiles and tunes
        prepare()
        estimate = one(call, device) / 1e3
        runs = max(5, min(timed, int(cap_s / max(estimate, 1e-9))))
        plan[name] = runs
        for _ in range(max(1, round(warm * runs / timed))):
            prepare()
            call()
    sync(device)
    spans: dict[str, list[Span]] = {name: [] for name in calls}
    for turn in range(max(plan.values(), default=0)):
        for name, (prepare, call) in calls.items():
            if turn < plan[name]:
                prepare()
                spans[name].append(Span(device))
                spans[name][-1].run(call)
        sync(device)
    return {name: summary([s.milliseconds for s in found]) for name, found in spans.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Median and 20th and 80th percentiles."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
        "count": len(ordered),
    }


def peak_bytes(
    prepare: Call, call: Call, device: str, leaves: dict[str, torch.Tensor]
) -> int | None:
    """Most device memory a call takes beyond inputs and gradients; None on a CPU.

    A gradient that overwrites its leaf takes none.
    """
    if device != "cuda":
        return None
    prepare()
    sync(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    sync(device)
    outputs = sum(
        leaf.grad.numel() * leaf.grad.element_size()
        for leaf in leaves.values()
        if leaf.grad is not None and leaf.grad.data_ptr() != leaf.data_ptr()
    )
    return max(0, torch.cuda.max_memory_allocated() - before - outputs)


def _median_of(call: Call, device: str) -> float:
    call()
    sync(device)
    spans = [Span(device) for _ in range(FLOOR_CALLS)]
    for span in spans:
        span.run(call)
    sync(device)
    return statistics.median(span.milliseconds for span in spans)


def gemm_floor(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds of the vendor library's three products at this shape, rows by chunks of 8,192.

    z = X W^T, dX = E W, dW = E^T X; random data, since zeros draw less power and run faster.
    """
    rows = min(shape.rows, 8192)
    x = torch.randn(rows, shape.hidden, device=device).to(dtype)
    w = torch.randn(shape.vocab, shape.hidden, device=device).to(dtype)
    e = torch.randn(rows, shape.vocab, device=device).to(dtype)
    dx, dw = torch.empty_like(x), torch.empty_like(w)
    parts = shape.rows / rows
    times = {
        "logits_ms": parts * _median_of(lambda: torch.mm(x, w.T, out=e), device),
        "dx_ms": parts * _median_of(lambda: torch.mm(e, w, out=dx), device),
        "dw_ms": parts * _median_of(lambda: torch.mm(e.T, x, out=dw), device),
    }
    total = sum(times.values())
    flops = 6.0 * shape.rows * shape.hidden * shape.vocab
    return {**times, "three_gemms_ms": total, "tflops": flops / total / 1e9}


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes read and written per second by a copy of `size` bytes."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (_median_of(lambda: target.copy_(source), device) / 1e3)
