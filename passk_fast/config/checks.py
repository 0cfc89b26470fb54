"""Rules that sections of the configuration state about themselves."""

from __future__ import annotations

from passk_fast.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(section: str, **values: float) -> None:
    """Every value must be above zero; the message names `section.field`."""
    for name, value in values.items():
        require(value > 0, f"{section}.{name} must be positive, got {value}.")


def require_not_negative(section: str, **values: float) -> None:
    """No value may be below zero; the message names `section.field`."""
    for name, value in values.items():
        require(value >= 0, f"{section}.{name} must be 0 or more, got {value}.")
