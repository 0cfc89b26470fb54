"""A model's config.json as typed values: what is missing or of a wrong type is a ConfigError."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from passk_fast.errors import ConfigError


def read_json(file: Path, source: str) -> dict[str, object]:
    """A JSON object; ConfigError, beginning with `source`, when it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: {file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{source}: {file} cannot be read: it is not a JSON object.")
    return found


def read_config(folder: str | Path, source: str = "model.path") -> dict[str, object]:
    """`folder`/config.json; ConfigError as for `read_json`."""
    return read_json(Path(folder) / "config.json", source)


@dataclass(frozen=True)
class Fields:
    """Typed access to fields; each method raises a ConfigError that names the field."""

    values: Mapping[str, object]
    source: str
    """What error messages begin with, such as "model.path"."""

    def fail(self, name: str, wanted: str) -> ConfigError:
        """The error for a field whose value is not `wanted`."""
        return ConfigError(
            f"{self.source}: config.json says {name} = {self.values.get(name)!r}; "
            f"it must be {wanted}."
        )

    def get(self, name: str) -> object:
        """The value; ConfigError when the field is missing."""
        if name not in self.values:
            raise ConfigError(f"{self.source}: config.json has no field {name!r}.")
        return self.values[name]

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def count(self, name: str) -> int:
        """A positive whole number."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(name, "a positive whole number")
        return value

    def count_or_null(self, name: str) -> int | None:
        """A positive whole number, or null."""
        return None if self.get(name) is None else self.count(name)

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(name, "a positive number")
        if not 0 < value < math.inf:
            raise self.fail(name, "a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """true or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """A string."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.fail(name, "a string")
        return value

    def section(self, name: str) -> Fields:
        """The fields of an object; empty where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return Fields({}, self.source)
        if not isinstance(value, dict):
            raise self.fail(name, "an object")
        return Fields(value, self.source)
