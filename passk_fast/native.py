"""What csrc/ computes, or a plain word when it has not been built."""

from __future__ import annotations

try:
    from passk_fast._native import plan_micro_batches, plan_reshard
except ImportError as error:
    raise ImportError(
        f"passk_fast._native cannot be imported ({error}): build it with `make setup` or "
        "`pip install -e .`, which need a C++20 compiler."
    ) from error

__all__ = ["plan_micro_batches", "plan_reshard"]
