"""Array shapes in signatures are checked while tests run: jaxtyping's import hook with beartype.

Call `check_shapes` before the first import of passk_fast, in every process that runs tests. Only
modules that import jaxtyping (the kernels: their own shapes.py) are hooked, and only annotations
with a shape are checked: mypy checks the other types, and tests hand in stand-ins for engines and
samplers.
"""

from __future__ import annotations

import importlib
import importlib.util
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

IMPORTS = ("from jaxtyping import", "from passk_fast.kernels.shapes import")
Function = TypeVar("Function", bound=Callable[..., object])


def check_shapes() -> None:
    """Install the import hook."""
    install_import_hook(hooked_modules(), "tests.shapes.shapes_only")
    import_with_types("passk_fast.data.types")


def import_with_types(module: str) -> None:
    """Import a module together with what it imports for type checkers only.

    Verifier processes import `data.types` and have no use for torch; without torch the shapes of
    its fields mean nothing and would not be checked.
    """
    import torch  # noqa: F401  with TYPE_CHECKING false, as ever

    flags = vars(typing)
    flags["TYPE_CHECKING"] = True
    try:
        importlib.import_module(module)
    finally:
        flags["TYPE_CHECKING"] = False


def hooked_modules() -> list[str]:
    """Names of the modules of passk_fast that import jaxtyping."""
    spec = importlib.util.find_spec("passk_fast")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    files = [*root.rglob("*.py"), *(root / "kernels").rglob("*.py")]  # rglob skips links
    with_shapes = {f for f in files if any(line in f.read_text() for line in IMPORTS)}
    return sorted(
        ".".join(("passk_fast", *file.relative_to(root).with_suffix("").parts))
        for file in with_shapes
    )


def shapes_only(function: Function) -> Function:
    """`function` with beartype's check of those annotations that have a shape."""
    hints = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


def has_shape(hint: object) -> bool:
    """Whether a jaxtyping array stands anywhere in a type."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint))
