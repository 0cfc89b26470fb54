"""Host memory: what glibc does with freed memory."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's names for its settings (malloc.h)"""
KEPT_BYTES = 1 << 30
"""Freed memory at the top of the heap that is kept."""
LARGEST_HEAP_BYTES = 32 << 20
"""Larger tensors are mapped one by one; glibc takes no higher threshold."""


def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory in the process; returns whether it agreed.

    By itself it hands tensors of some megabytes back to the system as they are freed, and the next
    operator pays for fresh pages: a fifth of a training step on CPU. Nothing happens with another
    C library, or where the user has tuned malloc by its environment variables.
    """
    tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(name, size) == 1
        for name, size in ((_TRIM_THRESHOLD, KEPT_BYTES), (_MMAP_THRESHOLD, LARGEST_HEAP_BYTES))
    )
