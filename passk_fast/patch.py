"""The record of one place where this project changes or reaches into another library.

Each library's list of them is called `PATCHES`; docs/patches.md shows them all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One named function or class of ours; its docstring's first paragraph gives the reason."""

    function: str
    """Dotted name. Example: "passk_fast.actor.head.hidden_output"."""
    targets: tuple[str, ...]
    """What is replaced, or which private part is used: dotted names in the other library."""
    scope: str
    """When the patch is in force, and how it ends."""
    breaks: str
    """Which change of the other library would break it."""
    test: str
    """The test file, relative to the repository, that would notice."""
