"""Reads a run's configuration: strict TOML with one level of `base`, then the command line.

Every error is a ConfigError that says `file:line: section.field: what` or `command line: ...`, with
the nearest right name for a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from passk_fast.config import RunConfig
from passk_fast.config.fields import LARGEST_INTEGER, kind_of, nearest
from passk_fast.config.layers import Layers, PlacedError, Table
from passk_fast.config.renamed import RENAMED
from passk_fast.errors import ConfigError

T = TypeVar("T")
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
    "parallel.check_replicas_every",
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

INPUTS = "inputs.json"
"""File of a run folder that knows the run's inputs by content; see `differing_fields`."""
_KNOWN_BY_CONTENT = ("model.path", "data.train", "data.test")

_HELP_INDENT = " " * 8


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of `path` with command-line `overrides` (`--optim.lr 2e-4`) on top.

    Raises:
        ConfigError: missing file, bad TOML, unknown key, wrong type, or a rule that is broken.
    """
    layers = Layers.read(path, overrides)
    return _build(RunConfig, layers.values, "", layers)


def _build(cls: type[T], values: Table, prefix: str, layers: Layers) -> T:
    """A dataclass from a TOML table; `prefix` ends with a dot below the top level."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        field = prefix + key
        if field in RENAMED:
            raise PlacedError(f"{layers.place(field)}: {field} is now called {RENAMED[field]}.")
        if key not in hints:
            near = " or ".join(map(repr, nearest(field)))
            hint = f"Did you mean {near}?" if near else f"Known: {', '.join(hints)}."
            raise PlacedError(f"{layers.place(field)}: {field}: unknown key. {hint}")
        arguments[key] = _convert(hints[key], value, field, layers)
    try:
        return cls(**arguments)
    except PlacedError:
        raise
    except (ConfigError, ValueError) as error:
        text = _with_sections(str(error))
        raise PlacedError(f"{layers.place_of_text(text)}: {text}") from None


def _with_sections(text: str) -> str:
    """`PolicyLoss.clip_low`, as the kernels name their own options, becomes `loss.clip_low`."""
    for section, hint in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            text = text.replace(f"{typing.cast(type, hint).__name__}.", f"{section}.")
    return text


def _convert(hint: object, value: object, field: str, layers: Layers) -> object:
    """`value` of a TOML file as the type of a field."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(field, "a table", value, layers)
        return _build(hint, value, field + ".", layers)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if not any(type(value) is type(one) and value == one for one in typing.get_args(hint)):
            raise _wrong(field, kind_of(hint), value, layers)
        return value
    if origin is tuple:
        (item, _) = typing.get_args(hint)
        if not isinstance(value, list):
            raise _wrong(field, kind_of(hint), value, layers)
        return tuple(_convert(item, entry, field, layers) for entry in value)
    if origin is dict:
        (_, item) = typing.get_args(hint)
        if not isinstance(value, dict):
            raise _wrong(field, "a table", value, layers)
        return {
            key: _convert(item, entry, f"{field}.{key}", layers) for key, entry in value.items()
        }
    assert not isinstance(origin, types.UnionType), "no unions in the configuration"
    assert isinstance(hint, type)
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        raise _wrong(field, "a number of 64 bits", value, layers)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(field, kind_of(hint), value, layers)
    if isinstance(value, str) and "\0" in value:
        raise _wrong(field, "text without NUL characters", value, layers)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(field, "text that UTF-8 can hold", value, layers) from None
    return value


def _wrong(field: str, wanted: str, value: object, layers: Layers) -> ConfigError:
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    kind = type(value).__name__
    return PlacedError(f"{layers.place(field)}: {field}: must be {wanted}, got {shown} ({kind}).")


# ---- help ----------------------------------------------------------------------------------------


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
        return "{" + ", ".join(f"{_text(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    return repr(value)


def _text(value: str) -> str:
    """A basic string of TOML: JSON's, but for surrogate pairs and U+007F, which TOML forbids."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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


def differing_fields(a: RunConfig, b: RunConfig, *, by_content: bool = False) -> list[str]:
    """Fields that define a run and differ; empty for configurations that may share a run folder.

    `by_content`: paths of inputs may differ, since their content is compared.
    """
    first, second = _defining(a), _defining(b)
    skipped = _KNOWN_BY_CONTENT if by_content else ()
    return [name for name in first if first[name] != second[name] and name not in skipped]
