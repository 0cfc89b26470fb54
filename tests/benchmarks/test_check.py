"""The check of benchmark results against their bands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.check import main


def write(folder: Path, value: float) -> list[str]:
    (folder / "a.json").write_text(json.dumps({"ratio": {"x": value}}))
    (folder / "bands.toml").write_text(
        '[[band]]\nfile = "a.json"\nfigure = "ratio/x"\nlow = 1.0\nhigh = 2.0\n'
        '[[band]]\nfile = "gone.json"\nfigure = "y"\nlow = 1.0\nhigh = 2.0\n'
    )
    return ["--results", str(folder), "--baselines", str(folder / "bands.toml")]


@pytest.mark.parametrize(
    ("value", "code", "word"), [(0.9, 1, "LOW"), (1.5, 0, "ok"), (3, 1, "HIGH")]
)
def test_both_sides_of_a_band_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, code: int, word: str
) -> None:
    assert main(write(tmp_path, value)) == code
    printed = capsys.readouterr().out
    assert printed.startswith(word)
    assert "absent" in printed


def test_a_figure_that_is_not_there_is_named(tmp_path: Path) -> None:
    arguments = write(tmp_path, 1.5)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit, match="ratio/x"):
        main(arguments)


def test_the_committed_results_are_within_their_bands() -> None:
    assert main([]) == 0
