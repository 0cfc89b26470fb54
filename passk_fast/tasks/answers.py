"""The answer inside a response: the content of its last `<answer>` tag or `\\boxed{}`."""

from __future__ import annotations

import re

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BOXES = 20
"""Boxes that are looked at, from the last one backwards."""


def last_answer(text: str) -> str | None:
    """Content of the last complete `<answer>` tag (any case; of nested ones the inner), or None."""
    tags = _TAG.findall(text)
    return tags[-1] if tags else None


def tagged_answer(response: str) -> str:
    """The last `<answer>` tag's content, without one the whole response; outer space removed."""
    tagged = last_answer(response)
    return (response if tagged is None else tagged).strip()


def boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` of a text, or None."""
    for match in reversed(list(_BOX.finditer(text))[-_BOXES:]):
        depth = 1
        for brace in _BRACES.finditer(text, match.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[match.end() : brace.start()]
    return None
