"""Versions that passk_fast was tested with; others are refused at the start of a run.

It relies on internals of Megatron-core and vLLM (docs/patches.md), where another version may
compute something else without a word. PASSK_FAST_ANY_VERSION=1 goes on regardless.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from passk_fast.errors import ConfigError

SWITCH = "PASSK_FAST_ANY_VERSION"
"""Environment variable: with "1" untested versions give a warning instead of an error."""


@dataclass(frozen=True)
class Tested:
    """A range of versions, in words and as a specifier of `packaging`."""

    words: str
    specifier: str


TESTED: Mapping[str, Tested] = {
    "python": Tested("3.11 and 3.12", ">=3.11,<3.13"),
    "torch": Tested("2.11 to 2.13", ">=2.11,<2.14"),
    "triton": Tested("3.6 and 3.7", ">=3.6,<3.8"),
    "megatron-core": Tested("0.16.1 to 0.19.2", ">=0.16.1,<0.20"),
    "vllm": Tested("0.32", ">=0.32,<0.33"),
}
"""The one table of tested versions, by the package's name on PyPI."""
ABSENT = "absent"


def package_version(name: str) -> str:
    """The installed version, or "absent"; vLLM's CPU build counts as vLLM. Imports nothing."""
    if name == "python":
        return platform.python_version()
    for candidate in (name, f"{name}-cpu"):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return ABSENT


def untested(versions: Mapping[str, str]) -> list[str]:
    """One clause for each version outside the tested range; what is absent is left out."""
    from packaging.specifiers import SpecifierSet

    return [
        f"{name} {versions[name]} (tested: {tested.words})"
        for name, tested in TESTED.items()
        if versions.get(name, ABSENT) != ABSENT
        and not SpecifierSet(tested.specifier).contains(versions[name], prereleases=True)
    ]


def any_version_wanted() -> bool:
    """Whether the switch is set."""
    return os.environ.get(SWITCH, "0") not in ("", "0")


def check_versions(installed: Mapping[str, str] | None = None, *, warn: bool = True) -> None:
    """Refuse versions that were not tested; with the switch, warn on stderr (rank 0 alone).

    Args:
        installed: versions by name; None asks this Python.
        warn: False for a process whose workers will warn.

    Raises:
        ConfigError: naming packages, versions found and tested ranges.
    """
    if installed is None:
        installed = {name: package_version(name) for name in TESTED}
    wrong = untested(installed)
    if not wrong:
        return
    found = "Versions that passk_fast was not tested with: " + "; ".join(wrong) + "."
    if not any_version_wanted():
        raise ConfigError(
            f"{found} Install tested ones (`make setup` does), or set {SWITCH}=1 to go on "
            "regardless: results may be wrong without a word."
        )
    if warn and os.environ.get("RANK", "0") == "0":
        print(f"warning: {found} {SWITCH} is set.", file=sys.stderr, flush=True)
