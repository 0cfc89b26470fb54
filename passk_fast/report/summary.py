"""What a run achieved: held-out pass@1 and pass@k before and after, and where to look next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from passk_fast.report.curve import plot_learning_curve
from passk_fast.report.records import Record, read_records
from passk_fast.report.sinks import METRICS_FILE, SAMPLES_FOLDER, TENSORBOARD_FOLDER


def _interval(evaluation: Record, name: str) -> str:
    """Example: "0.102 [0.080, 0.127]"."""
    value, low, high = (evaluation.get(f"{name}{part}") for part in ("", "_low", "_high"))
    if value is None:
        return "not measured"
    text = f"{value:.3f}"
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def _change(before: Record, after: Record, name: str) -> str:
    """The change, and whether the two intervals overlap."""
    old, new = before.get(name), after.get(name)
    if old is None or new is None:
        return ""
    change = f"{new - old:+.3f}"
    ends = [entry.get(f"{name}_{end}") for entry in (before, after) for end in ("low", "high")]
    known = [float(end) for end in ends if end is not None]
    if len(known) < 4:
        return change
    old_low, old_high, new_low, new_high = known
    if new_low > old_high:
        return f"{change}, better: the intervals do not overlap"
    if new_high < old_low:
        return f"{change}, worse: the intervals do not overlap"
    return f"{change}, within noise: the intervals overlap"


def format_summary(before: Record | None, after: Record | None, paths: Mapping[str, Path]) -> str:
    """The closing text of a run.

    Args:
        before, after: evaluations as in `record["eval"]`: "pass@1", "pass@1_low", "pass@1_high",
            the same three of "pass@k", "k", "prompts", "rollouts". None: there was no evaluation.
        paths: what to look at, name -> path. Example: {"metrics": run / "metrics.jsonl"}.
    """
    if after is None:
        lines = ["Held-out result: no evaluation was made."]
    else:
        lines = [
            f"Held-out result ({after.get('prompts', '?')} prompts x "
            f"{after.get('rollouts', '?')} responses, [interval])"
        ]
        for name, label in (("pass@1", "pass@1"), ("pass@k", f"pass@{after.get('k', 'k')}")):
            first = _interval(before or {}, name)
            line = f"  {label:<8} {first}  ->  {_interval(after, name)}"
            change = _change(before or {}, after, name)
            lines.append(f"{line}   {change}" if change else line)
    lines.append("Where to look")
    width = max((len(name) for name in paths), default=0)
    lines += [f"  {name:<{width}}  {path}" for name, path in paths.items()]
    return "\n".join(lines)


def print_summary(
    before: Record | None,
    after: Record | None,
    paths: Mapping[str, Path],
    console: Console | None = None,
) -> None:
    """Print `format_summary`; call it on rank 0, after the report is closed."""
    text = format_summary(before, after, paths)
    (console or Console()).print(text, soft_wrap=True, markup=False, highlight=False)


def summarise_run(folder: Path) -> None:
    """Plot the learning curve of a finished run and print its summary."""
    metrics = folder / METRICS_FILE
    evaluated = [record["eval"] for record in read_records(metrics) if record.get("eval")]
    paths = {
        "config": folder / "config.toml",
        "metrics": metrics,
        "tensorboard": folder / TENSORBOARD_FOLDER,
        "samples": folder / SAMPLES_FOLDER,
        "checkpoints": folder / "checkpoints",
    }
    if evaluated:
        paths["curve"] = plot_learning_curve(metrics, folder / "curve.png")[0]
    first, last = (evaluated[0], evaluated[-1]) if evaluated else (None, None)
    print_summary(first, last, paths)
