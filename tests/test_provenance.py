"""What a measurement was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

from passk_fast.provenance import machine, versions


def test_only_installed_packages_have_a_version() -> None:
    assert versions(["numpy", "no-such-package"]) == {
        "python": platform.python_version(),
        "numpy": version("numpy"),
    }


def test_machine_says_where_and_when() -> None:
    found = machine([])
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["date"].endswith("+00:00")
    assert set(found) == {"date", "commit", "cpu", "cores", "versions"}
