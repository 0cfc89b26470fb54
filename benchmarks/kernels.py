"""The kernels against their floor and their peers, on one GPU, in one process.

    python benchmarks/kernels.py --wheels WHEELS --out benchmarks/results/kernels_h200.json
    python benchmarks/kernels.py --small --out /tmp/kernels.json        # the script's logic, CPU

Providers run in turn; 10 warm-ups and 30 timed calls each (fewer for one that would take more than
--cap-s, the count says so); CUDA events; median, p20, p80. Every time is also a fraction of a floor
measured in the same run: the vendor library's products at that shape, or the bandwidth of a copy.
Errors are against float64 on the first 1,024 rows of such a problem. Peak memory is beyond inputs
and outputs. A peer that cannot be imported, or fails, is named with the reason.
--wheels: a folder with liger-kernel, cut-cross-entropy, verl, quack-kernels (and their needs).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder: `kernels` is also a package that transformers looks for

import torch  # noqa: E402

from benchmarks.kernel_bench import checks, measure, peers, plot, problems  # noqa: E402
from benchmarks.kernel_bench.problems import Problem, Shape  # noqa: E402
from passk_fast.provenance import cpu_name, machine  # noqa: E402

HEADS = ((3584, 152064), (5120, 151936), (2048, 151936), (5120, 18992), (4096, 131072))
LOGITS = tuple((t, v) for v in (151936, 18992) for t in (2048, 8192, 32768))
PACKAGES = (
    "torch", "triton", "liger-kernel", "cut-cross-entropy", "verl", "quack-kernels",
    "nvidia-cutlass-dsl", "megatron-core", "transformer-engine",
)  # fmt: skip
Case = tuple[str, Shape, str]


def cases(small: bool) -> list[Case]:
    """(kind, shape, regime), the most telling first: a run out of time loses the last ones."""
    if small:
        tiny = Shape(96, 32, 208)
        found: list[Case] = [("head", tiny, regime) for regime in problems.REGIMES]
        return [*found, ("logprob", tiny, "dense"), ("logits", tiny, "dense")]
    main = [Shape(8192, h, v) for h, v in HEADS]
    found = [("head", main[1], regime) for regime in problems.REGIMES]
    found += [("logprob", main[1], "dense")]
    found += [("logits", Shape(t, 0, v), "dense") for t, v in LOGITS]
    found += [("head", shape, "dense") for shape in main if shape != main[1]]
    found += [("head", Shape(32768, 5120, 151936), regime) for regime in ("rl", "dense")]
    found += [("head", main[2], "rl"), ("logits", Shape(8192, 0, 151936), "rl")]
    return found + [("logprob", shape, "dense") for shape in main if shape != main[1]]


class Bench:
    """One run: its options, its floors and its rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cpu" if options.small else "cuda"
        self.dtype = torch.float32 if options.small else torch.bfloat16
        self.deadline = time.monotonic() + options.budget_s
        self.rows: list[dict[str, Any]] = []
        self.floors: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        size = 1 << (22 if options.small else 31)
        self.bandwidth = measure.copy_bandwidth(self.device, size)

    def floor_ms(self, kind: str, shape: Shape) -> float:
        """Milliseconds that nothing of this kind and shape can go below."""
        if kind == "logits":
            return 1e3 * 4.0 * shape.rows * shape.vocab / self.bandwidth
        key = f"{shape.rows} x {shape.hidden} x {shape.vocab}"
        if key not in self.floors:
            self.floors[key] = measure.gemm_floor(shape, self.device, self.dtype)
        return float(self.floors[key]["logits_ms" if kind == "logprob" else "three_gemms_ms"])

    def leaves(self, kind: str, shape: Shape, problem: Problem) -> dict[str, torch.Tensor]:
        """What gradients are taken for; logits of a "logits" problem are random."""
        if kind != "logits":
            gradient = kind == "head"
            return {
                "hidden": problem.hidden.detach().requires_grad_(gradient),
                "weight": problem.weight.detach().requires_grad_(gradient),
            }
        return {"logits": problems.logits_of(problem, shape, self.dtype).requires_grad_()}

    def run_case(self, case: Case) -> None:
        """Check, then time, all providers of one case; a row each."""
        kind, shape, regime = case
        providers = {
            "head": peers.head_providers,
            "logprob": peers.logprob_providers,
            "logits": peers.logits_providers,
        }[kind]()
        runs: dict[str, Any] = {}
        for provider in providers:
            if regime not in provider.regimes or not self._wanted(provider.name):
                continue
            try:
                runs[provider.name] = (provider, provider.make())
            except Exception as error:
                self.absent[provider.name.removesuffix(", informative rows")] = reason(error)
        found = self._errors(case, runs)
        ready = {name: runs[name] for name, row in found.items() if row["status"] == "ok"}
        self._times(case, ready, found)
        floor = self.floor_ms(kind, shape)
        for name, row in found.items():
            head = {"kind": kind, **vars(shape), "regime": regime, "provider": name}
            if row["status"] == "ok":
                row["fraction_of_floor"] = floor / row["time_ms"]["median"]
                share = row["informative_fraction"]
                row["fraction_of_informative_floor"] = row["fraction_of_floor"] * share
            self.rows.append({**head, "floor_ms": floor, **row})
            print(line(self.rows[-1]), flush=True)

    def _wanted(self, name: str) -> bool:
        return not self.options.only or any(word in name for word in self.options.only)

    def _errors(self, case: Case, runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Correctness columns on up to 1,024 rows, by provider."""
        kind, shape, regime = case
        small = Shape(min(shape.rows, 1024), shape.hidden, shape.vocab)
        problem = self._problem(kind, small, regime, seed=1)
        leaves = self.leaves(kind, small, problem)
        kept = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        if kind == "logits":
            want = checks.logits_answer(problem, kept["logits"])
        else:
            want = checks.head_answer(problem)
        found: dict[str, dict[str, Any]] = {}
        for name, (provider, run) in runs.items():
            try:
                got, again = (self._fresh(run, problem, kept) for _ in range(2))
                columns = checks.errors(provider, got, again, want, problem)
                found[name] = {"status": "ok", "errors": columns, "backend": got["backend"]}
            except Exception as error:
                found[name] = {"status": f"failed: {reason(error)}"}
        return found

    def _fresh(self, run: Any, problem: Problem, kept: dict[str, torch.Tensor]) -> dict[str, Any]:
        """One call on copies of the leaves (some providers write into logits)."""
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in kept.items()}
        padded = self._pad(problem, leaves)
        got = checks.call(run, problem, {**leaves, **padded})
        if padded and padded["padded"].grad is not None:
            got["logits"] = padded["padded"].grad[:, :-1].reshape(leaves["logits"].shape)
        return got

    def _pad(self, problem: Problem, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The layout [B, L + 1, V] of Liger's grpo_loss, made outside the clock."""
        if "logits" not in leaves or not problem.sequence_length or self.device == "cpu":
            return {}
        shape = (-1, problem.sequence_length, leaves["logits"].shape[1])
        blocks = leaves["logits"].detach().view(shape)
        return {"padded": torch.nn.functional.pad(blocks, (0, 0, 0, 1)).requires_grad_()}

    def _problem(self, kind: str, shape: Shape, regime: str, seed: int) -> Problem:
        if kind == "logits":
            return problems.rows_only(shape, regime, self.device, seed)
        return problems.make_problem(shape, regime, self.device, self.dtype, seed)

    def _times(self, case: Case, runs: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
        """Times and peak memory of one case, into its rows."""
        kind, shape, regime = case
        problem = self._problem(kind, shape, regime, seed=0)
        leaves = self.leaves(kind, shape, problem)
        leaves |= self._pad(problem, leaves)
        # Providers may write a gradient over the logits: each call gets them back, off the clock.
        kept = {name: z.detach().clone() for name, z in leaves.items() if kind == "logits"}

        @torch.no_grad()
        def prepare() -> None:
            for name, leaf in leaves.items():
                leaf.grad = None
                if name in kept:
                    leaf.copy_(kept[name])

        calls: dict[str, Any] = {}
        for name, (_, run) in runs.items():
            call = _caller(run, problem, leaves)
            try:
                found[name]["peak_bytes"] = measure.peak_bytes(prepare, call, self.device, leaves)
                calls[name] = (prepare, call)
            except Exception as error:
                found[name] = {"status": f"failed at this size: {reason(error)}"}
                gc.collect()
                if self.device == "cuda":
                    torch.cuda.empty_cache()
        times = measure.interleaved(
            calls, self.device, warm=self.options.warm, timed=self.options.timed,
            cap_s=self.options.cap_s,
        )  # fmt: skip
        share = problem.informative_fraction
        for name, time_ms in times.items():
            found[name] |= {"time_ms": time_ms, "informative_fraction": share}


def _caller(run: Any, problem: Problem, leaves: dict[str, torch.Tensor]) -> Any:
    def call() -> None:
        result = run(problem, leaves)
        if result.loss is not None:
            result.loss.backward()

    return call


def reason(error: BaseException) -> str:
    """One line of an exception."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    start = f"{row['kind']:8} {plot.case_label(row):44} {row['provider']:36}"
    if row["status"] != "ok":
        return f"{start} {row['status']}"
    columns = " ".join(
        f"{name}={value:.1e}" if isinstance(value, float) else f"{name}={value}"
        for name, value in row["errors"].items()
    )
    return (
        f"{start} {row['time_ms']['median']:9.3f} ms  {row['fraction_of_floor']:5.2f} of floor "
        f"{row['backend']} {columns}"
    )


def device_name(device: str) -> str:
    """What the kernels ran on."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({cpu_name()})"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU; no claims")
    parser.add_argument("--wheels", type=Path, help="folder of the peers' wheels")
    parser.add_argument("--only", nargs="*", default=[], help="providers with one of these words")
    parser.add_argument("--kinds", nargs="*", default=["head", "logprob", "logits"])
    parser.add_argument("--warm", type=int, default=10, help="warm-up calls")
    parser.add_argument("--timed", type=int, default=30, help="timed calls")
    parser.add_argument("--cap-s", type=float, default=4.0, help="most time on one provider")
    parser.add_argument("--budget-s", type=float, default=440.0, help="no case starts after this")
    parser.add_argument("--out", type=Path, required=True, help="JSON report")
    parser.add_argument("--plot", type=Path, help="PNG; default: beside the report on a GPU")
    return parser.parse_args(arguments)


def draw(options: argparse.Namespace) -> None:
    """The plot, where matplotlib is installed."""
    if options.small and not options.plot:
        return
    picture = options.plot or options.out.with_suffix(".png")
    try:
        plot.plot(json.loads(options.out.read_text()), picture)
    except ImportError as error:
        print(f"no plot: {reason(error)}")


def main(arguments: list[str] | None = None) -> int:
    """Run all cases within the budget; 1 when one of ours failed."""
    options = parse(arguments)
    if not options.small and not torch.cuda.is_available():
        print("No CUDA GPU: only --small runs here.", file=sys.stderr)
        return 2
    wheels = peers.add_wheels(options.wheels)
    bench = Bench(options)
    left = [case for case in cases(options.small) if case[0] in options.kinds]
    while left and time.monotonic() < bench.deadline:
        bench.run_case(left.pop(0))
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        report = {
            "device": device_name(bench.device),
            "machine": machine(PACKAGES),
            "command": " ".join(sys.argv),
            "wheels": wheels,
            "claims": not options.small,
            "copy_bytes_per_s": bench.bandwidth,
            "floors": bench.floors,
            "absent": bench.absent,
            "not_reached": [[kind, vars(shape), regime] for kind, shape, regime in left],
            "rows": bench.rows,
        }
        options.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    for name, why in bench.absent.items():
        print(f"absent: {name}: {why}")
    print(f"not reached: {len(left)} cases")
    draw(options)
    return int(any(r["status"] != "ok" for r in bench.rows if r["provider"].startswith("ours")))


if __name__ == "__main__":
    sys.exit(main())
