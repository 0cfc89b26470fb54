"""Objects of user code: from modules and files, without a trace, and errors that name the place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from passk_fast.errors import ConfigError
from passk_fast.tasks.user_code import load_object


def _file(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_from_a_module() -> None:
    assert load_object("json:dumps") is json.dumps


def test_a_file_is_read_once_and_leaves_the_search_path_alone(tmp_path: Path) -> None:
    before = list(sys.path)
    path = _file(tmp_path, "VALUE = object()")
    assert load_object(f"{path}:VALUE") is load_object(f"{path}:VALUE")
    assert sys.path == before


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    values = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        values.append(load_object(f"{_file(tmp_path / name, f'VALUE = {name!r}')}:VALUE"))
    assert values == ["a", "b"]


def test_a_file_hides_no_module_of_its_name(tmp_path: Path) -> None:
    path = _file(tmp_path, "JSONEncoder = 'mine'", "json.py")
    assert load_object(f"{path}:JSONEncoder") == "mine"
    assert load_object("json:JSONEncoder") is json.JSONEncoder


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    _file(tmp_path, "VALUE = 7", "the_neighbour_of_mine.py")
    path = _file(tmp_path, "from the_neighbour_of_mine import VALUE")
    assert load_object(f"{path}:VALUE") == 7


def test_a_relative_file_is_one_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(tmp_path, "VALUE = 8")
    monkeypatch.chdir(tmp_path)
    assert load_object("mine.py:VALUE") == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "cannot be imported: SyntaxError: invalid syntax"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit", r"cannot be imported: SystemExit\.$"),
        (
            "import no_such_module_here",
            "ModuleNotFoundError: No module named 'no_such_m",
        ),
        ("", r"mine\.py has no 'VALUE'"),
    ],
)
def test_files_that_hold_no_object(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            load_object(f"{path}:VALUE")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("rewards.py", "must have the form FILE:FUNCTION"),
        ("rewards.py:not a name", "must have the form FILE:FUNCTION"),
        ("nowhere.py:f", r"nowhere\.py: no such file"),
        ("no_such_module_here:f", "cannot be imported.*Is its folder on PYTHONPATH"),
        ("math:nothing", "math has no 'nothing'"),
    ],
)
def test_places_that_are_none(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_object(place)
