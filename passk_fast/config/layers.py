"""Where each value of a configuration was written: the command line, the file, its base."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from passk_fast.config.fields import field_types, parse_overrides, section_names
from passk_fast.errors import ConfigError, PasskError

Table = Mapping[str, object]
"""A TOML table."""
_COMMAND_LINE = "command line"
_KEY = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
_HEADER_LINE = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_KEY_LINE = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_NAME = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*")
_REMEDIES = (
    (r"\s*[\w.-]+\s*:", "TOML is written `key = value`, not `key: value`."),
    (r"\s*\{", "TOML is written `key = value`, not as JSON."),
    (r".*=\s*(True|False)\b", "Booleans are true and false in small letters."),
    (r".*=\s*(None|null|nil)\b", "TOML has no null: leave the key out."),
    (r".*=\s*[A-Za-z./~]", "Text stands in quotes."),
    (r".*=\s*$", "The key needs a value."),
)
"""By the line that is wrong."""
_SAID = (
    ("Cannot", "Write each key and each table once."),
    ("Unterminated", "Close the quotes."),
    ("Illegal character", "Close the quotes on the same line."),
    ("Unclosed array", "Close the list with ]."),
    ("end of a table", "Close the name of the table with ]."),
)
"""By what the parser said."""


class PlacedError(ConfigError):
    """A ConfigError whose message begins with its place."""


@dataclass(frozen=True)
class Layer:
    """One source of values."""

    name: str
    """The file, or "command line"."""
    values: Table
    lines: tuple[str, ...] = ()
    """Of the file."""

    def holds(self, field: str) -> bool:
        """Whether a dotted name is set here."""
        value: object = self.values
        for part in field.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True

    def place(self, field: str) -> str:
        """`file:line` of a field, or of the table that it is in; else the file alone."""
        while field:
            current = ""
            for number, line in enumerate(self.lines, start=1):
                header, key = _HEADER_LINE.match(line), _KEY_LINE.match(line)
                if header:
                    current = _plain(header[1])
                written = current
                if key:
                    written = ".".join(filter(None, (current, _plain(key[1]))))
                if (header or key) and f"{written}.".startswith(f"{field}."):
                    return f"{self.name}:{number}"
            field = field.rpartition(".")[0]
        return self.name


def _plain(key: str) -> str:
    parts = (part.strip().strip("\"'") for part in key.split("."))
    return ".".join(parts)


@dataclass(frozen=True)
class Layers:
    """The sources of a configuration, the one that counts first."""

    layers: tuple[Layer, ...]

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Layers:
        """Of a file, its base, and what the command line puts on top.

        Raises:
            ConfigError: a file that is missing or no TOML, or an override that is none.
        """
        file = Path(path)
        values, lines = _read(file)
        base = values.pop("base", None)
        layers = [Layer(str(file), values, lines)]
        if base is not None:
            layers.append(_base(layers[0], base))
        if overrides:
            layers.insert(0, Layer(_COMMAND_LINE, parse_overrides(overrides)))
        return cls(tuple(layers))

    @property
    def values(self) -> Table:
        """All of them, table by table."""
        out: Table = {}
        for layer in reversed(self.layers):
            out = _merged(out, layer.values)
        return out

    def place(self, field: str) -> str:
        """Where a field was set."""
        top = next((layer for layer in self.layers if layer.holds(field)), self._file)
        return top.place(field)

    @property
    def _file(self) -> Layer:
        return next(layer for layer in self.layers if layer.name != _COMMAND_LINE)

    def place_of_text(self, text: str) -> str:
        """The place of the first field that a message names and a source sets; else the file."""
        named = [name for name in _NAME.findall(text) if _is_field(name, text)]
        ordered = sorted(named, key=lambda name: name in section_names())  # fields first
        for name in ordered:
            if any(layer.holds(name) for layer in self.layers):
                return self.place(name)
        return self.place(ordered[0]) if ordered else self._file.name


def _is_field(name: str, text: str) -> bool:
    """Whether a word of a message is meant as a field: "steps" is a word of the language too."""
    if name not in field_types() and name not in section_names():
        return False
    return "." in name or "_" in name or text.startswith(name)


@contextmanager
def placed(path: str | Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Put the place of the field that it names before an error that is raised inside."""
    try:
        yield
    except PlacedError:
        raise
    except PasskError as error:
        text = str(error)
        if not any(_is_field(name, text) for name in _NAME.findall(text)):
            raise
        place = Layers.read(path, overrides).place_of_text(text)
        raise type(error)(f"{place}: {text}") from error.__cause__


def _merged(below: Table, above: Table) -> dict[str, object]:
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            value = _merged(under, value)
        out[key] = value
    return out


def _base(layer: Layer, name: object) -> Layer:
    place = layer.place("base")
    if not isinstance(name, str) or not name:
        raise PlacedError(f"{place}: base: must be the path of a TOML file, got {name!r}.")
    file = Path(layer.name).parent / name
    try:
        values, lines = _read(file)
    except PlacedError:
        raise
    except ConfigError as error:
        raise PlacedError(f"{place}: base: {error}") from None
    if "base" in values:
        raise PlacedError(
            f"{file}: a base file cannot have a base itself. Put its keys into one of the two."
        )
    return Layer(str(file), values, lines)


def _read(file: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    try:
        # A pipe may never end, and ranks read the file again.
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ConfigError(f"{file}: not a regular file; the configuration is a TOML file.")
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; the configuration is a TOML file.") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from None
    lines = tuple(text.splitlines())
    try:
        return tomllib.loads(text), lines
    except tomllib.TOMLDecodeError as error:
        raise PlacedError(_syntax(file, lines, str(error))) from None
    except RecursionError:
        place = _first(file, lines, r".*[\[{]{50}")
        raise PlacedError(
            f"{place}: not valid TOML: lists or tables are nested too deeply."
        ) from None
    except ValueError:
        place = _first(file, lines, r".*\d{4000}")
        raise PlacedError(f"{place}: not valid TOML: a number of thousands of digits.") from None


def _first(file: Path, lines: Sequence[str], pattern: str) -> str:
    """`file:line` of the first line that a pattern matches."""
    found = (i for i, line in enumerate(lines, start=1) if re.match(pattern, line))
    return ":".join(map(str, (file, *list(found)[:1])))


def _syntax(file: Path, lines: Sequence[str], said: str) -> str:
    """`file:line:column` and a remedy for an error of the parser."""
    what, _, where = said.partition(" (at ")
    match = re.match(r"line (\d+), column (\d+)", where)
    number, column = (int(match[1]), int(match[2])) if match else (len(lines), 0)
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    column = column or len(line) + 1
    by_words = [remedy for words, remedy in _SAID if words in what]
    by_line = [remedy for pattern, remedy in _REMEDIES if re.match(pattern, line)]
    remedy = (by_words or by_line or ["A line is `key = value` or `[table]`."])[0]
    shown = line.strip() if len(line.strip()) <= 60 else line.strip()[:57] + "..."
    return f"{file}:{number}:{column}: not valid TOML: {what}, in `{shown}`. {remedy}"
