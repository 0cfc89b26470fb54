"""The learning curve of a run: held-out pass@1 and pass@k, with intervals, against the step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passk_fast.errors import DataError
from passk_fast.report.records import disk_errors, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito: colour-blind readers can tell them apart, also in grey.
SERIES = (("pass@1", "#0072B2", "o"), ("pass@k", "#D55E00", "s"))
DPI = 150


def plot_learning_curve(metrics_jsonl: Path, out: Path) -> tuple[Path, Path]:
    """Plot the evaluations of a run; step 0 is the warm start, before reinforcement learning.

    Args:
        metrics_jsonl: the run's metrics; records with an "eval" are plotted.
        out: where the plot goes; its suffix is replaced. Example: "curve" gives curve.png and
            curve.svg.

    Returns:
        The paths of the PNG and the SVG, which are the same bytes for the same metrics.

    Raises:
        DataError: the file is missing or malformed, or holds no evaluation.
        DiskError: the plots cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluated = [record for record in read_records(metrics_jsonl) if record.get("eval")]
    if not evaluated:
        raise DataError(f"{metrics_jsonl}:1: no record holds an evaluation (key 'eval').")
    png, svg = out.with_suffix(".png"), out.with_suffix(".svg")
    with rc_context({"svg.hashsalt": "passk_fast", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), evaluated)
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(png, dpi=DPI, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg


def _draw(axes: Axes, evaluated: list[dict[str, Any]]) -> None:
    """Both series with their bands, the warm start, labels and legend."""
    last = evaluated[-1]["eval"]
    steps = [record["step"] for record in evaluated]
    for name, colour, marker in SERIES:
        values, low, high = (
            [_value(record["eval"], f"{name}{part}") for record in evaluated]
            for part in ("", "_low", "_high")
        )
        label = f"pass@{last.get('k', 'k')}" if name == "pass@k" else name
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.errorbar(
            steps,
            values,
            yerr=[_lengths(low, values), _lengths(values, high)],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            elinewidth=0.8,
            capsize=2,
            label=label,
        )
    if steps[0] == 0:
        axes.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(
            "warm start", (0, 0.02), xycoords=("data", "axes fraction"), color="0.4", fontsize=8,
            xytext=(4, 0), textcoords="offset points",
        )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel("held-out share solved")
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{last.get('prompts', '?')} held-out prompts, {last.get('rollouts', '?')} responses "
        "each, with intervals",
        fontsize=9,
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, loc="best")


def _value(evaluation: dict[str, Any], key: str) -> float:
    """A number of the evaluation; NaN where it is null or absent."""
    value = evaluation.get(key)
    return math.nan if value is None else float(value)


def _lengths(low: list[float], high: list[float]) -> list[float]:
    """Lengths of error bars, 0 where an end is unknown or rounding made it negative."""
    gaps = [end - start for start, end in zip(low, high, strict=True)]
    return [max(0.0, gap) if math.isfinite(gap) else 0.0 for gap in gaps]
