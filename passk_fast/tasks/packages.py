"""Packages that only some tasks need: a missing one is one sentence, not a traceback."""

from __future__ import annotations

import importlib.util

from passk_fast.errors import ConfigError


def require_package(module: str, package: str, requirements: str, task: str) -> None:
    """ConfigError, naming the package and how to install it, where `module` cannot be found."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"the task {task!r} needs the package {package}, which is not installed: "
            f"pip install -r requirements/{requirements}."
        )
