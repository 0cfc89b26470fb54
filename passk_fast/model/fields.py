"""Which fields of config.json a model family knows, and at which values.

A field that no rule names may change what the model computes, so it is an error: nothing in a
config.json is ignored silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import Fields


class Use(StrEnum):
    """What becomes of a field that may have any value."""

    COMPUTED = "computed"
    """It is part of the `ModelShape`; values that cannot be computed are refused there."""
    HARMLESS = "harmless"
    """It does not change what the model computes."""


@dataclass(frozen=True)
class Only:
    """A field that is accepted at these values alone; with them it changes nothing."""

    values: tuple[object, ...]
    because: str
    """Why no other value is, as a clause."""
    remedy: str = ""
    """What to do about another value; the default asks for an accepted one."""

    def accepts(self, value: object) -> bool:
        """Whether `value` is one of the values; true and 1 differ."""
        return any(
            value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values
        )


Rule = Use | Only
"""How one field is treated."""


def rules(use: Use, *names: str) -> dict[str, Rule]:
    """The same use for several fields."""
    return dict.fromkeys(names, use)


def check_fields(fields: Fields, table: Mapping[str, Rule], family: str, inside: str = "") -> None:
    """ConfigError, naming field, value and remedy, for the first one that `table` does not accept.

    A field that is null and that the table does not know is not set, and passes. `inside` is the
    object that holds the fields, such as "rope_parameters"; "" is config.json itself.
    """
    for name, value in fields.values.items():
        rule = table.get(name)
        where = f"{inside}.{name}" if inside else name
        if rule is None and value is not None:
            raise ConfigError(
                f"{fields.source}: config.json says {where} = {_short(value)}, a field that is not "
                f"known for {family!r} and may change what the model computes. Remove it from "
                "config.json if it does not; otherwise the model cannot be trained here."
            )
        if isinstance(rule, Only) and not rule.accepts(value):
            accepted = " or ".join(_json(v) for v in rule.values)
            remedy = rule.remedy or f"Take {accepted} if the weights allow it"
            raise ConfigError(
                f"{fields.source}: config.json says {where} = {_short(value)}, which is not "
                f"supported for {family!r}: {rule.because}. {remedy}."
            )


def _json(value: object) -> str:
    """As config.json writes it."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)


def _short(value: object, longest: int = 80) -> str:
    text = _json(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
