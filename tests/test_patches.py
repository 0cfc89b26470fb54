"""docs/patches.md and the code list the same patches, and no other patch hides in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from passk_fast.patch import Patch

ROOT = Path(__file__).resolve().parent.parent
LISTS = (
    "passk_fast.rollout.vllm.patches",
    "passk_fast.actor.cpu.megatron_shim",
    "passk_fast.actor.patches",
    "passk_fast.checkpoint.megatron",
)
OTHERS = {"torch", "megatron", "vllm", "transformers", "triton"}
"""Libraries whose attributes must not be set but in a patch."""


def patches() -> list[Patch]:
    return [patch for module in LISTS for patch in import_module(module).PATCHES]


def resolved(name: str) -> object:
    """What a dotted name stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


def reason(patch: Patch) -> str:
    """The first paragraph of the docstring of what does it, on one line."""
    text = resolved(patch.function).__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def row(patch: Patch) -> str:
    """The patch's row in the table of docs/patches.md."""
    ours = f"`{patch.function.removeprefix('passk_fast.')}`"
    targets = ", ".join(f"`{target}`" for target in patch.targets)
    cells = (ours, targets, reason(patch), patch.scope, patch.breaks, f"`{patch.test}`")
    return "| " + " | ".join(cells) + " |"


def test_the_page_lists_the_patches_of_the_code() -> None:
    page = (ROOT / "docs/patches.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    assert listed == [row(patch) for patch in patches()]


@pytest.mark.parametrize("patch", patches(), ids=lambda patch: patch.function)
def test_a_patch_has_a_reason_and_a_test(patch: Patch) -> None:
    assert len(reason(patch)) > 40
    assert (ROOT / patch.test).is_file()


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, marks=[] if target.startswith("vllm.") else pytest.mark.megatron)
        for patch in patches()
        for target in patch.targets
    ],
)
def test_what_is_patched_exists(target: str) -> None:
    """An upgrade that renames it is seen here first."""
    resolved(target)


def test_no_other_function_sets_an_attribute_of_another_library() -> None:
    known = {patch.function for patch in patches()}
    found = {
        where
        for file in sorted((ROOT / "passk_fast").rglob("*.py"))
        for where in assignments(ast.parse(file.read_text()), module_name(file))
    }
    allowed = {
        "passk_fast.actor.cpu.megatron_shim._Dispatchers",  # sets what the shim's records name
        "passk_fast.plan.meta.fuse_norms",  # of our own norms
    }
    assert found - known == allowed


def test_the_search_finds_what_it_should() -> None:
    code = """
import torch.cuda
from vllm import x as y
def a():
    torch.cuda.current_device = None
def b():
    manager = y.part
    manager.name = 3
class C:
    def d(self, layer):
        layer.forward = 1
def e():
    setattr(y, "name", 3)
def g(layer):
    setattr(layer, "forward", 3)
def f(group):
    y.part.table[group] = 3
def fine(self, layer):
    self.forward = 1
    layer.weight = 2
    here = y.part
"""
    assert set(assignments(ast.parse(code), "m")) == {"m.a", "m.b", "m.C", "m.e", "m.f", "m.g"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def assignments(tree: ast.Module, module: str) -> Iterator[str]:
    """Dotted names of the functions and classes that set an attribute of another library's objects.

    Objects that are imported from it, directly or by another name; and anything's `forward`.
    """
    foreign = set(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            names = {t.id for t in node.targets if isinstance(t, ast.Name)}
            foreign |= names if _root(node.value) in foreign else set()
    for outer in tree.body:
        name = f"{module}.{getattr(outer, 'name', '')}"
        for node in ast.walk(outer):
            if any(_sets(target, foreign) for target in getattr(node, "targets", [])):
                yield name
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "setattr"
                and (_root(node.args[0]) in foreign or ast.unparse(node.args[1]) == "'forward'")
            ):
                yield name


def _sets(target: ast.expr, foreign: set[str]) -> bool:
    if isinstance(target, ast.Subscript):
        target = target.value
    if not isinstance(target, ast.Attribute) or _root(target) == "self":
        return False
    return _root(target) in foreign or target.attr == "forward"


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OTHERS:
                    yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OTHERS:
            yield from (alias.asname or alias.name for alias in node.names)
