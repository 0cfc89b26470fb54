"""The study's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.experiments.arms import Arm

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
CURVES = ("grpo", "passk", "full", "bootstrap", "combination", "maxrl")
"""Arms of the learning curves."""


def _figure(columns: int, height: float = 4.2) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    return np.convolve(values, np.ones(width) / width, mode="valid")


def plot_study(
    found: list[Arm],
    runs: dict[str, list[dict[str, Any]]],
    start: dict[str, Any] | None,
    folder: Path,
) -> None:
    """arms.png (held-out pass@1 and pass@16 of all arms) and curves.png."""
    _plot_arms(found, runs, start, folder / "arms.png")
    _plot_curves([arm for arm in found if arm.name in CURVES], runs, folder / "curves.png")


def _plot_arms(
    found: list[Arm],
    runs: dict[str, list[dict[str, Any]]],
    start: dict[str, Any] | None,
    path: Path,
) -> None:
    figure, axes = _figure(2, height=0.32 * len(found) + 1.2)
    rows = np.arange(len(found))[::-1]
    for axis, key, colour in zip(axes, ("pass@1", "pass@16"), COLOURS, strict=False):
        for row, arm in zip(rows, found, strict=True):
            values = [run["eval"][key] for run in runs[arm.name]]
            axis.plot(values, [row] * len(values), "|", color=colour, markersize=9)
            axis.plot([np.mean(values)], [row], "o", color=colour, markersize=4)
        if start:
            axis.axvline(start[key], color="0.5", linewidth=0.8, linestyle=":")
        axis.set_yticks(rows, [arm.title for arm in found] if key == "pass@1" else [""] * len(rows))
        axis.set_xlabel(f"held-out {key}")
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle("bars: seeds; dots: their mean; dotted line: warm start", fontsize=9)
    _save(figure, path)


def _plot_curves(found: list[Arm], runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = _figure(3)
    labels = {
        "policy_entropy": "policy entropy (nats per token)",
        "wrong_distinct_share": "distinct among wrong",
        "pass@16": "training pass@16",
    }
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for arm, colour in zip(found, COLOURS, strict=False):
            table = np.array(
                [
                    [np.nan if step[key] is None else step[key] for step in run["steps"]]
                    for run in runs[arm.name]
                ],
                dtype=float,
            )
            mean = _smooth(np.nanmean(table, axis=0))
            steps = np.arange(len(mean)) + 3
            axis.plot(steps, mean, color=colour, label=arm.title, linewidth=1.4)
            if len(table) > 1:
                spread = _smooth(np.nanstd(table, axis=0, ddof=1))
                axis.fill_between(
                    steps, mean - spread, mean + spread, color=colour, alpha=0.12, lw=0
                )
        axis.set_xlabel("training step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def plot_toy(toy: dict[str, Any], path: Path) -> None:
    """E[max of k] by theta with its maximiser, and the variance of the gradient by k."""
    thetas = list(dict.fromkeys(row["theta"] for row in toy["variance"]))
    figure, axes = _figure(1 + len(thetas))
    for k, colour in zip(sorted(toy["expected_max"], key=int), COLOURS, strict=False):
        axes[0].plot(toy["thetas"], toy["expected_max"][k], color=colour, label=f"k = {k}")
        axes[0].axvline(toy["best_theta"][k], color=colour, linestyle=":", linewidth=0.8)
    axes[0].set_xlabel("theta (dotted: the maximiser)")
    axes[0].set_ylabel("E[max of k]")
    names = dict.fromkeys(row["estimator"] for row in toy["variance"])
    for axis, theta in zip(axes[1:], thetas, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            rows = [r for r in toy["variance"] if (r["estimator"], r["theta"]) == (name, theta)]
            axis.plot([r["k"] for r in rows], [r["variance"] for r in rows], "o-", color=colour,
                      label=name, markersize=3)  # fmt: skip
        axis.set_yscale("log")
        axis.set_xlabel(f"k (n = {toy['n']}, theta = {theta})")
        axis.set_ylabel("variance of the gradient estimate")
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.25)
    _save(figure, path)
