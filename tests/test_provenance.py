"""What a measurement was made with."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from passk_fast.provenance import commit, cpu_name, machine, versions


def test_only_installed_packages_have_a_version() -> None:
    assert versions(["numpy", "no-such-package"]) == {
        "python": platform.python_version(),
        "numpy": version("numpy"),
    }


def test_machine_says_where_and_when() -> None:
    found = machine([])
    assert found["cpu"]
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1
    assert str(found["date"]).endswith("+00:00")
    assert set(found) == {"date", "commit", "cpu", "cores", "versions"}


def test_the_commit_is_that_of_the_checkout_and_not_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = commit()
    assert re.fullmatch(r"[0-9a-f]{12}|", here)
    monkeypatch.chdir(tmp_path)
    assert commit() == here


def test_the_processor_has_a_name() -> None:
    assert cpu_name() == cpu_name().strip() != ""


def test_results_are_plain_json() -> None:
    found = machine(["torch", "numpy"])
    assert json.loads(json.dumps(found)) == found
    versions_found = found["versions"]
    assert isinstance(versions_found, dict)
    assert set(versions_found) == {"python", "torch", "numpy"}
