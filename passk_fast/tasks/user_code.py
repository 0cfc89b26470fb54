"""Objects of the user's own code by their place: `my_package.rewards:score` or `rewards.py:score`.

A file is loaded under a name of its own, so that it hides no other module of the same name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from passk_fast.errors import ConfigError


def load_object(place: str) -> object:
    """What stands at "MODULE:NAME" or "FILE.py:NAME"; a relative file is one of this folder.

    Raises:
        ConfigError: another form, no such file, module or name, or a module that raises.
    """
    source, _, name = place.rpartition(":")
    if not source or not name.isidentifier():
        raise ConfigError(
            f"{place!r} must have the form FILE:FUNCTION, such as rewards.py:score, or "
            "MODULE:FUNCTION, such as my_package.rewards:score."
        )
    try:
        module = _file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        where = (
            "" if source.endswith(".py") else " Is its folder on PYTHONPATH, or is it installed?"
        )
        raise ConfigError(f"{place!r}: {source} cannot be imported: {text}.{where}") from error
    found: object = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{place!r}: {source} has no {name!r}.")
    return found


def _file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        with _neighbours(path.parent):
            specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Modules beside the file can be imported while it is read; they stand behind all others."""
    before = list(sys.path)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
