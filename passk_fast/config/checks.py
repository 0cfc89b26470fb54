"""Rules that sections of the configuration state about themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from passk_fast.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(section: str, **values: float) -> None:
    """Every value must be above zero; the message names `section.field`. "" is the top level."""
    for name, value in values.items():
        require(value > 0, f"{_dotted(section, name)} must be positive, got {value}.")


def require_not_negative(section: str, **values: float) -> None:
    """No value may be below zero; the message names `section.field`."""
    for name, value in values.items():
        require(value >= 0, f"{_dotted(section, name)} must be 0 or more, got {value}.")


def require_finite(section: str, options: object) -> None:
    """No number of a dataclass, or of a table in it, may be NaN or infinite."""
    assert dataclasses.is_dataclass(options)
    for field in dataclasses.fields(options):
        value: object = getattr(options, field.name)
        entries = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, entry in entries:
            name = _dotted(_dotted(section, field.name), str(key))
            finite = not isinstance(entry, float) or math.isfinite(entry)
            require(finite, f"{name} must be a finite number, got {entry}.")


def _dotted(section: str, name: str) -> str:
    return ".".join(filter(None, (section, name)))
