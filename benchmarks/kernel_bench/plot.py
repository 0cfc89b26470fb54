"""A plot of the results: the fraction of the floor that every provider reaches, by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {
    "head": "loss and gradients from hidden states (floor: 3 GEMMs)",
    "logprob": "log-probs from hidden states (floor: 1 GEMM)",
    "logits": "loss and gradient from logits (floor: copy of 4 bytes an element)",
}


def case_label(row: dict[str, Any]) -> str:
    """One line that names a case."""
    hidden = f" H={row['hidden']}" if row["kind"] != "logits" else ""
    return f"T={row['rows']}{hidden} V={row['vocab']} {row['regime']}"


def plot(report: dict[str, Any], path: Path) -> None:
    """One panel a kind, one group of bars a case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in report["rows"] if row["status"] == "ok"]
    kinds = [kind for kind in TITLES if any(row["kind"] == kind for row in rows)]
    names = list(dict.fromkeys(row["provider"] for row in rows))
    palette = plt.get_cmap("tab20")
    colours = {name: palette(i % palette.N) for i, name in enumerate(names)}
    figure, axes = plt.subplots(
        len(kinds), 1, figsize=(12, 4.5 * len(kinds)), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        mine = [row for row in rows if row["kind"] == kind]
        cases = list(dict.fromkeys(case_label(row) for row in mine))
        for row in mine:
            group = [r["provider"] for r in mine if case_label(r) == case_label(row)]
            width = 0.8 / len(group)
            at = cases.index(case_label(row)) + (group.index(row["provider"]) + 0.5) * width - 0.4
            axis.bar(at, row["fraction_of_floor"], width, color=colours[row["provider"]])
        axis.set_xticks(range(len(cases)), cases, fontsize=7, rotation=12)
        axis.axhline(1.0, color="black", linewidth=0.6)
        axis.set_title(f"{TITLES[kind]}, {report['device']}", fontsize=9)
        axis.set_ylabel("fraction of the floor")
        shown = list(dict.fromkeys(row["provider"] for row in mine))
        handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in shown]
        axis.legend(
            handles, shown, fontsize=6, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    figure.savefig(path, dpi=120)
    plt.close(figure)
