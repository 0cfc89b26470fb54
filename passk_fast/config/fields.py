"""The fields of the configuration by their dotted names: types, nearest names, text as a value."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache

from passk_fast.config.renamed import RENAMED
from passk_fast.config.run import RunConfig
from passk_fast.errors import ConfigError

LARGEST_INTEGER = 2**63 - 1
_OWN_OPTIONS = ("dry_run", "nproc", "help")
"""Options of the commands, which are no fields."""
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


@lru_cache(maxsize=1)
def field_types() -> Mapping[str, object]:
    """Dotted name -> type of every field, sections not included."""
    return dict(_fields(RunConfig, ""))


def _fields(cls: type, prefix: str) -> list[tuple[str, object]]:
    out: list[tuple[str, object]] = []
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            out += _fields(hint, f"{prefix}{name}.")
        else:
            out.append((prefix + name, hint))
    return out


@lru_cache(maxsize=1)
def section_names() -> frozenset[str]:
    """Dotted names of all sections."""
    names = [name.split(".")[:-1] for name in field_types()]
    return frozenset(".".join(parts[: i + 1]) for parts in names for i in range(len(parts)))


def is_switch(hint: object) -> bool:
    """Whether a field is true or false, or one of these and "auto"."""
    return hint is bool or True in typing.get_args(hint)


def kind_of(hint: object) -> str:
    """What a field holds, in words."""
    if typing.get_origin(hint) is typing.Literal:
        shown = (repr(a).lower() if a in (True, False) else repr(a) for a in typing.get_args(hint))
        return "one of " + ", ".join(shown)
    if typing.get_origin(hint) is tuple:
        return f"a list, and each entry {kind_of(typing.get_args(hint)[0])}"
    if isinstance(hint, type) and hint in _KINDS:
        return _KINDS[hint]
    return "a table"


def nearest(field: str) -> list[str]:
    """Fields and sections that an unknown name may stand for: the likeliest ones, or none."""
    section, _, key = field.rpartition(".")
    known = [*field_types(), *section_names()]
    if joined := [name for name in known if name.replace(".", "_") == field.replace(".", "_")]:
        return joined
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    if near := difflib.get_close_matches(key.strip(), beside, n=1):
        return [beside[near[0]]]
    if elsewhere := [name for name in field_types() if name.rpartition(".")[2] == key]:
        return elsewhere[:3]
    by_key = {name.rpartition(".")[2]: name for name in known}
    return [by_key[near] for near in difflib.get_close_matches(key, by_key, n=1, cutoff=0.8)]


# ---- the command line ----------------------------------------------------------------------------


def parse_overrides(arguments: Sequence[str]) -> dict[str, object]:
    """`--optim.lr 2e-4 --rollout.no-sleep` as the nested tables of a TOML file.

    A list takes all words up to the next option, a table takes pairs of words. Of an option that is
    given twice the last one counts.

    Raises:
        ConfigError: an unknown option, or a value that is missing or of another type.
    """
    out: dict[str, object] = {}
    words = list(arguments)
    while words:
        flag, equals, inline = words.pop(0).partition("=")
        name, negated = _field_of(flag, bool(equals))
        count = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        given = [inline] if equals else words[:count]
        try:
            value, used = (False, 0) if negated else _value_of(field_types()[name], given)
        except ValueError as error:
            raise ConfigError(f"command line: {flag}: {error}.") from None
        if not equals:
            del words[:used]
        elif negated:
            raise ConfigError(f"command line: {flag}: takes no value.")
        *sections, key = name.split(".")
        table = out
        for section in sections:
            table = typing.cast(dict[str, object], table.setdefault(section, {}))
        table[key] = value
    return out


def _field_of(flag: str, has_value: bool) -> tuple[str, bool]:
    """(field, whether the flag turns it off)."""
    name = flag.removeprefix("--").replace("-", "_")
    if not flag.startswith("--") or name == flag:
        hint = f" Did you mean --{flag}?" if has_value and name in field_types() else ""
        raise ConfigError(
            f"command line: {flag!r} belongs to no option; options are like --optim.lr 2e-4.{hint}"
        )
    if name in field_types():
        return name, False
    positive = re.sub(r"(^|\.)no_", r"\1", name)
    if positive != name and is_switch(field_types().get(positive)):
        return positive, True
    if name in RENAMED:
        raise ConfigError(f"command line: {flag} is now called {_flag(RENAMED[name])}.")
    if name in section_names():
        inside = [field for field in field_types() if field.startswith(f"{name}.")]
        raise ConfigError(
            f"command line: {flag} is a section; give one of its options, such as "
            f"{_flag(inside[0])}."
        )
    near = nearest(positive.lower()) or difflib.get_close_matches(name, _OWN_OPTIONS, n=1)
    hint = f" Did you mean {' or '.join(map(_flag, near))}?" if near else ""
    raise ConfigError(
        f"command line: {flag}: unknown option.{hint} `passk-fast train --help` lists all."
    )


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _value_of(hint: object, given: Sequence[str]) -> tuple[object, int]:
    """(value, how many of the words it took); ValueError with what is wrong."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return [_scalar(item, word) for word in given], len(given)
    if origin is dict:
        if len(given) % 2 or not given:
            raise ValueError(f"needs pairs of a name and a value, got {' '.join(given)!r}")
        item = typing.get_args(hint)[1]
        pairs = zip(given[::2], given[1::2], strict=True)
        return {key: _scalar(item, word) for key, word in pairs}, len(given)
    if is_switch(hint):
        if not given:
            return True, 0
        word = given[0].lower()
        if word in ("true", "false"):
            return word == "true", 1
        if word not in typing.get_args(hint):
            raise ValueError(f"must be {kind_of(hint)}, got {given[0]!r}")
        return word, 1
    if not given:
        raise ValueError(f"needs a value: {kind_of(hint).removesuffix(' in quotes')}")
    return _scalar(hint, given[0]), 1


def _scalar(hint: object, word: str) -> object:
    allowed = typing.get_args(hint)
    try:
        if hint is int and len(word) < 30:
            return int(word)
        if hint is float:
            return float(word)
    except ValueError:
        pass
    if hint is int or hint is float or (allowed and word not in allowed):
        raise ValueError(f"must be {kind_of(hint)}, got {word!r}")
    return word
