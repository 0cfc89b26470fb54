"""The answer inside a response: the content of its last `<answer>` tag."""

from __future__ import annotations

import re

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)


def last_answer(text: str) -> str | None:
    """Content of the last complete `<answer>` tag (any case; of nested ones the inner), or None."""
    tags = _TAG.findall(text)
    return tags[-1] if tags else None


def tagged_answer(response: str) -> str:
    """The last `<answer>` tag's content, without one the whole response; outer space removed."""
    tagged = last_answer(response)
    return (response if tagged is None else tagged).strip()
