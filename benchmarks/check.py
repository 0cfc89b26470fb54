"""Are results within their bands, neither worse nor suspiciously better than they were?

    python benchmarks/check.py [--results FOLDER]

Reads benchmarks/baselines.toml: a file of results, a figure in it (keys joined by "/"), and the
band that it must be in. Figures are ratios within one run, or shares, never seconds. Prints a table
and exits with 1 when a figure is outside; a result that is not there is reported and passes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Band:
    """Where a figure of a result file has to be."""

    file: str
    figure: str
    low: float
    high: float

    def verdict(self, folder: Path) -> tuple[str, float | None]:
        """("ok", "LOW", "HIGH" or "absent", the figure)."""
        path = folder / self.file
        if not path.is_file():
            return "absent", None
        value = _find(json.loads(path.read_text()), self.figure)
        if value < self.low:
            return "LOW", value
        return ("ok" if value <= self.high else "HIGH"), value


def _find(values: Any, figure: str) -> float:
    for key in figure.split("/"):
        if not isinstance(values, dict) or key not in values:
            raise SystemExit(f"baselines.toml: there is no figure {figure!r} in the result file.")
        values = values[key]
    return float(values)


def bands(file: Path) -> list[Band]:
    """The bands of a baselines file."""
    return [Band(**entry) for entry in tomllib.loads(file.read_text())["band"]]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 when a figure is outside its band."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--baselines", type=Path, default=HERE / "baselines.toml")
    options = parser.parse_args(arguments)
    outside = 0
    for band in bands(options.baselines):
        verdict, value = band.verdict(options.results)
        outside += verdict in ("LOW", "HIGH")
        shown = "-" if value is None else f"{value:.3f}"
        print(
            f"{verdict:6s} {shown:>8s}  in [{band.low:g}, {band.high:g}]  "
            f"{band.file}: {band.figure}"
        )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
