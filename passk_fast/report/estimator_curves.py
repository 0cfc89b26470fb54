"""`passk-fast curves`: advantage and eta of estimators by the number of correct responses.

The curves of arXiv 2508.10751, figures 9 and 18, for any estimator that has a table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from passk_fast.advantage import eta, table, zero_advantage_rows
from passk_fast.errors import ConfigError
from passk_fast.report.records import disk_errors

# Okabe-Ito: colour-blind readers can tell them apart, also in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
FIGURE_9 = ("passk:1", "passk:4", "passk:8", "passk:16")
"""What is plotted unless something else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One estimator's table. Example: `Curve.parse("passk_piecewise:8:tau=0.5", 32)`."""

    name: str
    estimator: str
    k: int
    table: np.ndarray
    """float64 [n + 1, 2]"""
    options: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, n: int) -> Curve:
        """`ESTIMATOR[:K[:OPTION=VALUE,...]]`, k = 1 where none is given.

        Raises:
            ConfigError: what the estimator refuses, or text that is not of this form.
        """
        estimator, _, rest = text.partition(":")
        k, _, options_text = rest.partition(":")
        try:
            options = {
                key: float(value)
                for key, _, value in (
                    part.partition("=") for part in options_text.split(",") if part
                )
            }
            number = int(k or 1)
        except ValueError:
            raise ConfigError(
                f"curves: {text!r} is not ESTIMATOR[:K[:OPTION=VALUE,...]]; for example "
                "passk_piecewise:8:tau=0.25."
            ) from None
        try:
            values = table(estimator, n, number, **options)
        except ValueError as error:
            raise ConfigError(f"curves: {text}: {error}") from None
        return cls(name=text, estimator=estimator, k=number, options=options, table=values)

    @property
    def argmax(self) -> list[int]:
        """The numbers of correct responses at which eta is largest (several where it is flat)."""
        values = eta(self.table)
        return [int(c) for c in np.flatnonzero(values >= values.max() * (1 - 1e-12))]

    def summary(self) -> str:
        """Where eta peaks, in words. Example: "passk:4: eta is largest, 10.3622, at c = 8 ..."."""
        n = len(self.table) - 1
        values = eta(self.table)
        informative = np.flatnonzero(~zero_advantage_rows(self.table))
        if not len(informative):
            return f"{self.name}: no gradient for any group of {n}"
        where = ", ".join(f"{c} of {n} ({c / n:.1%})" for c in self.argmax)
        return (
            f"{self.name}: eta is largest, {values.max():.6g}, at c = {where}; signal from c = "
            f"{informative[0]} to {informative[-1]}"
        )


def write_curves(texts: Sequence[str], n: int, out: Path) -> tuple[list[Curve], list[Path]]:
    """Compute the curves and write `out` with suffixes .csv, .png and .svg.

    Raises:
        ConfigError: as `Curve.parse`, or n below 2.
        DiskError: a file cannot be written.
    """
    if n < 2:
        raise ConfigError(f"curves: --num-rollouts must be at least 2, got {n}.")
    curves = [Curve.parse(text, n) for text in texts]
    paths = [out.with_suffix(suffix) for suffix in (".csv", ".png", ".svg")]
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_csv(curves, paths[0])
        _draw(curves, n, paths[1], paths[2])
    return curves, paths


def _write_csv(curves: Sequence[Curve], path: Path) -> None:
    """A row per curve and c; floats as Python prints them, so that they read back exactly."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("curve", "n", "c", "advantage_wrong", "advantage_correct", "eta"))
        for curve in curves:
            n = len(curve.table) - 1
            for c, ((wrong, correct), size) in enumerate(
                zip(curve.table.tolist(), eta(curve.table).tolist(), strict=True)
            ):
                rows.writerow((curve.name, n, c, wrong, correct, size))


def _draw(curves: Sequence[Curve], n: int, png: Path, svg: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    c = np.arange(n + 1)
    with rc_context({"svg.hashsalt": "passk_fast", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        for i, curve in enumerate(curves):
            style = {"color": _COLOURS[i % len(_COLOURS)], "linewidth": 1.4, "label": curve.name}
            # A correct response cannot be at c = 0, nor a wrong one at c = n.
            left.plot(c[1:], curve.table[1:, 1], **style)
            middle.plot(c[:-1], curve.table[:-1, 0], **style)
            values = eta(curve.table)
            right.plot(c, values, **style)
            best = curve.argmax[0]
            right.plot([best], [values[best]], "o", color=style["color"], markersize=5)
        labels = (
            "advantage, correct",
            "advantage, wrong",
            "eta: sum of |advantage| (dot: largest)",
        )
        for axis, label in zip((left, middle, right), labels, strict=True):
            axis.set_xlabel(f"correct responses c of {n}")
            axis.set_ylabel(label)
            axis.grid(alpha=0.25)
            axis.set_xticks(range(0, n + 1, max(1, math.ceil(n / 8))))
        right.legend(frameon=False, fontsize=8)
        figure.savefig(png, dpi=110, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
