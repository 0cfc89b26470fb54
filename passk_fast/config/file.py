"""Reads a run's configuration: strict TOML with one level of `base`, then the command line.

Every error is a ConfigError that says `file:line: section.field: what`, with the nearest right name
for a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import re
import shutil
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from passk_fast.config import RunConfig
from passk_fast.config.renamed import RENAMED
from passk_fast.errors import ConfigError

T = TypeVar("T")
Table = Mapping[str, object]
"""A TOML table."""

_FREE_FIELDS = (
    "output_dir",
    "steps",
    "timeout_s",
    "stop_grace_s",
    "device",
    "micro_batch_tokens",
    "checkpoint.",
    "eval.",
    "bench.",
    "logprob_gap.",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.virtual_pipeline",
    "parallel.context",
    "parallel.expert",
    "parallel.recompute",
    "rollout.tensor",
    "rollout.dedicated_ranks",
    "rollout.max_num_seqs",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.sleep",
    "rollout.enforce_eager",
    "rollout.sync_mib",
    "rollout.verify_weights",
    "rollout.max_verifier_failures",
    "warm_start.cache_dir",
)
"""What may change when a run is resumed: where and how it runs, not what it computes."""

_HELP_INDENT = " " * 8


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of `path` with command-line `overrides` (`--optim.lr 2e-4`) on top.

    Raises:
        ConfigError: missing file, bad TOML, unknown key, wrong type, or a rule that is broken.
    """
    file = Path(path)
    values = _read(file)
    if "base" in values:
        base = file.parent / str(values.pop("base"))
        below = _read(base)
        if "base" in below:
            raise ConfigError(f"{base}: a base file cannot have a base itself.")
        _build(RunConfig, below, "", _Source(base))
        values = _merge(below, values)
    config = _build(RunConfig, values, "", _Source(file))
    return apply_overrides(config, overrides) if overrides else config


def _read(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{match[1]}" if match else str(file)
        raise ConfigError(f"{place}: not valid TOML: {error}") from None


def _merge(below: Table, above: Table) -> dict[str, object]:
    """`above` on top of `below`, table by table."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            value = _merge(under, value)
        out[key] = value
    return out


class _Source:
    """Finds the line of a field in a TOML file, for error messages."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines = file.read_text(encoding="utf-8").splitlines()

    def place(self, field: str) -> str:
        """`file:line` of "section.field", or the file alone where it is not written there."""
        section, _, name = field.rpartition(".")
        current = ""
        for number, line in enumerate(self._lines, start=1):
            header = re.match(r"\s*\[([\w.\-\" ]+)\]", line)
            if header:
                current = header[1].strip()
                if current == field:
                    return f"{self.file}:{number}"
            key = re.match(r"\s*([\w.\-]+)\s*=", line)
            if key and f"{current}.{key[1]}".lstrip(".") == field:
                return f"{self.file}:{number}"
            if key and current == section and key[1] == name:
                return f"{self.file}:{number}"
        return str(self.file)


def _build(cls: type[T], values: Table, prefix: str, source: _Source) -> T:
    """A dataclass from a TOML table; `prefix` ends with a dot below the top level."""
    hints = typing.get_type_hints(cls)
    names = list(hints)
    arguments = {}
    for key, value in values.items():
        field = prefix + key
        if field in RENAMED:
            raise ConfigError(f"{source.place(field)}: {field} is now called {RENAMED[field]}.")
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = (
                f" Did you mean {prefix + near[0]!r}?" if near else f" Known: {', '.join(names)}."
            )
            raise ConfigError(f"{source.place(field)}: {field}: unknown key.{hint}")
        arguments[key] = _convert(hints[key], value, field, source)
    try:
        return cls(**arguments)
    except (ConfigError, ValueError) as error:
        text = _with_sections(str(error))
        if text.startswith(("/", str(source.file))):
            raise
        named = re.search(r"[a-z_]+(\.[a-z_0-9]+)+|^[a-z_]+", text)
        place = source.place(named[0].removeprefix("run.")) if named else str(source.file)
        raise ConfigError(f"{place}: {text}") from None


def _with_sections(text: str) -> str:
    """`PolicyLoss.clip_low`, as the kernels name their own options, becomes `loss.clip_low`."""
    for section, hint in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            text = text.replace(f"{typing.cast(type, hint).__name__}.", f"{section}.")
    return text


def _convert(hint: object, value: object, field: str, source: _Source) -> object:
    """`value` of a TOML file as the type of a field."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(field, "a table", value, source)
        return _build(hint, value, field + ".", source)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise _wrong(field, f"one of {', '.join(map(repr, allowed))}", value, source)
        return value
    if origin is tuple:
        (item, _) = typing.get_args(hint)
        if not isinstance(value, list):
            raise _wrong(field, f"a list of {item.__name__}", value, source)
        return tuple(_convert(item, entry, field, source) for entry in value)
    if origin is dict:
        (_, item) = typing.get_args(hint)
        if not isinstance(value, dict):
            raise _wrong(field, "a table", value, source)
        return {
            key: _convert(item, entry, f"{field}.{key}", source) for key, entry in value.items()
        }
    assert not isinstance(origin, types.UnionType), "no unions in the configuration"
    assert isinstance(hint, type)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise _wrong(field, hint.__name__, value, source)
    return value


def _wrong(field: str, wanted: str, value: object, source: _Source) -> ConfigError:
    kind = type(value).__name__
    return ConfigError(
        f"{source.place(field)}: {field}: must be {wanted}, got {value!r} of type {kind}."
    )


# ---- command line --------------------------------------------------------------------------------


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with tyro's flags on top; ConfigError instead of an exit for a bad one."""
    import tyro

    known = dict(flatten(config))
    for flag in overrides:
        name = flag[2:].split("=")[0].replace("-", "_").replace(".no_", ".")
        name = name if name in known else name.removeprefix("no_")
        if not flag.startswith("--") or name in known or name in ("help", "h"):
            continue
        if name in RENAMED:
            new = RENAMED[name].replace("_", "-")
            raise ConfigError(f"command line: {flag.split('=')[0]} is now called --{new}.")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean --{near[0]}?" if near else ""
        raise ConfigError(f"command line: {flag.split('=')[0]}: unknown option.{hint}")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            made: RunConfig = tyro.cli(
                RunConfig, args=list(overrides), default=config, prog="passk-fast train"
            )
            return made
    except ConfigError as error:
        raise ConfigError(f"command line: {error}") from None
    except SystemExit as stop:
        text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", printed.getvalue()).split())
        if stop.code in (0, None):
            raise
        # tyro puts a frame around a ValueError of a section's own rules.
        ruled = re.search(r"Error parsing \w+: (PolicyLoss.+?) -{5,}", text)
        text = _with_sections(ruled[1]) if ruled else text
        raise ConfigError(f"command line: {text}") from None


def help_text(width: int | None = None) -> str:
    """All options of a run with their documentation, wrapped to `width` (None: the terminal's)."""
    import tyro

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(RunConfig, args=["--help"], prog="passk-fast train CONFIG")
    columns = shutil.get_terminal_size().columns if width is None else width
    return _paragraphs(printed.getvalue(), max(40, columns))


def _paragraphs(text: str, width: int) -> str:
    """tyro keeps the line breaks of a docstring: its indented lines become whole paragraphs."""
    out: list[str] = []
    for indented, lines in itertools.groupby(text.splitlines(), _is_help):
        if indented:
            paragraph = " ".join(" ".join(lines).split())
            out += textwrap.wrap(
                paragraph, width, initial_indent=_HELP_INDENT, subsequent_indent=_HELP_INDENT
            )
        else:
            out += [line.rstrip()[:width] for line in lines]
    return "\n".join(out) + "\n"


def _is_help(line: str) -> bool:
    return line.startswith(_HELP_INDENT) and bool(line.strip())


# ---- writing and comparing -----------------------------------------------------------------------


def flatten(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every field of a dataclass, depth first."""
    assert dataclasses.is_dataclass(config)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml_value(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value)


def dump_toml(config: RunConfig) -> str:
    """The full configuration as TOML that `load_config` reads back to an equal one."""
    sections: dict[str, list[str]] = {"": []}
    for name, value in flatten(config):
        section, _, key = name.rpartition(".")
        sections.setdefault(section, []).append(f"{key} = {_toml_value(value)}")
    blocks = []
    for section, lines in sections.items():
        header = [f"[{section}]"] if section else []
        blocks.append("\n".join(header + lines))
    return "\n\n".join(blocks) + "\n"


def _defining(config: RunConfig) -> dict[str, object]:
    return {name: value for name, value in flatten(config) if not name.startswith(_FREE_FIELDS)}


def config_digest(config: RunConfig) -> str:
    """Digest of what a run computes; equal for configurations that may share a run folder."""
    text = json.dumps(_defining(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_fields(a: RunConfig, b: RunConfig) -> list[str]:
    """Fields that define a run and differ."""
    first, second = _defining(a), _defining(b)
    return [name for name in first if first[name] != second[name]]
