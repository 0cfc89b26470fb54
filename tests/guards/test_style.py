"""Sizes, docstrings and `Any`, counted on the syntax trees of the package and of the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_ANY_PER_THOUSAND_LINES = 5.0
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 10
MAX_MODULE_DOCSTRING_LINES = 6
MIN_TEST_LINES_PER_SOURCE_LINE = 0.8

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_files(*folders: str) -> list[Path]:
    """Files below folders of the root; `passk_fast/kernels` is a link to `kernels`."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


SOURCES = {file: ast.parse(file.read_text()) for file in python_files("passk_fast", "kernels")}
SOURCES = {file: tree for file, tree in SOURCES.items() if "passk_fast/kernels" not in str(file)}


def lines_of(file: Path) -> int:
    return file.read_text().count("\n")


def place(file: Path, node: Documented) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"


def functions() -> Iterator[tuple[Path, Function]]:
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield file, node


def is_triton(function: Function) -> bool:
    """Whether it is compiled by Triton, whose functions take no structures."""
    return any("triton" in ast.unparse(decorator) for decorator in function.decorator_list)


def is_property(node: Documented) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)


def public_definitions(body: list[ast.stmt]) -> Iterator[Documented]:
    """Functions, classes and methods with public names.

    Left out are properties, which their names describe, and methods of classes with a base class,
    where they are documented.
    """
    for node in body:
        if not isinstance(node, Documented) or node.name.startswith("_") or is_property(node):
            continue
        yield node
        if isinstance(node, ast.ClassDef) and not node.bases:
            yield from public_definitions(node.body)


def protocol_methods() -> set[str]:
    """Names of methods that a protocol documents for all classes that keep to it."""
    return {
        method.name
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
        for method in node.body
        if isinstance(method, Function) and ast.get_docstring(method)
    }


def test_any_is_rare() -> None:
    found = {
        file.relative_to(ROOT): count
        for file, tree in SOURCES.items()
        if (count := sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(tree)))
    }
    lines = sum(map(lines_of, SOURCES))
    rate = 1000 * sum(found.values()) / lines
    worst = sorted(found.items(), key=lambda item: -item[1])[:10]
    assert rate <= MAX_ANY_PER_THOUSAND_LINES, (
        f"{sum(found.values())} in {lines} lines: {rate:.2f} per thousand; most in "
        + ", ".join(f"{file} {count}" for file, count in worst)
    )


def test_files_are_short() -> None:
    everything = [*SOURCES, *python_files("tests", "benchmarks", "examples")]
    long = {str(f.relative_to(ROOT)): n for f in everything if (n := lines_of(f)) > MAX_FILE_LINES}
    assert not long


def test_functions_are_short() -> None:
    long = {
        place(file, node): length
        for file, node in functions()
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
        and not is_triton(node)
    }
    assert not long


def test_functions_take_few_parameters() -> None:
    many = {}
    for file, node in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MAX_PARAMETERS and not is_triton(node):
            many[place(file, node)] = count
    assert not many


def test_modules_say_what_they_are() -> None:
    wrong = {}
    for file, tree in SOURCES.items():
        text = ast.get_docstring(tree) or ""
        lines = text.count("\n") + 1 if text else 0
        if (tree.body and not text) or lines > MAX_MODULE_DOCSTRING_LINES:
            wrong[str(file.relative_to(ROOT))] = lines
    assert not wrong


def test_public_functions_and_classes_have_docstrings() -> None:
    elsewhere = protocol_methods()
    bare = [
        place(file, node)
        for file, tree in SOURCES.items()
        for node in public_definitions(tree.body)
        if not ast.get_docstring(node)
        and node.name not in elsewhere
        and not (isinstance(node, Function) and is_triton(node))
    ]
    assert not bare


def test_folders_of_python_files_are_packages() -> None:
    """A folder without __init__.py would be invisible to import-linter."""
    folders = {file.parent for file in SOURCES}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_there_are_enough_tests() -> None:
    tests = sum(map(lines_of, python_files("tests")))
    sources = sum(map(lines_of, SOURCES))
    share = tests / sources
    assert share >= MIN_TEST_LINES_PER_SOURCE_LINE, f"{tests} / {sources} = {share:.2f}"
