"""Whether the host of torchrun's store, which is trainer rank 0's, still answers.

An unplugged host closes no connection, so a rank that waits for it receives nothing. The store is
served by a thread of its own: it answers however long the trainer takes.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Protocol, Self

_KEY = "store_watch"
_ASKED = 8
"""Queries per time-out."""


class Store(Protocol):
    """What is asked of torch's `TCPStore`, whose own type does not know `clone`."""

    def clone(self) -> Self: ...

    def set_timeout(self, timeout: timedelta, /) -> None: ...

    def set(self, key: str, value: bytes, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...


class StoreWatch:
    """A thread that queries the store again and again, on a connection of its own."""

    def __init__(self, store: Store, timeout: timedelta) -> None:
        self.timeout_s = timeout.total_seconds()
        self._store = store.clone()
        self._store.set_timeout(timeout)
        self._store.set(_KEY, b"")
        self._answered = time.monotonic()
        threading.Thread(target=self._ask, name="store-watch", daemon=True).start()

    def _ask(self) -> None:
        while True:
            try:
                self._store.get(_KEY)
                self._answered = time.monotonic()
            except RuntimeError:
                pass  # what counts is the time since the last answer
            time.sleep(self.timeout_s / _ASKED)

    def silent(self, since: float) -> bool:
        """Whether the store has not answered for a whole time-out, of which all lies after `since`
        (time.monotonic): before, the caller may have kept the thread from running."""
        return time.monotonic() - max(self._answered, since) > self.timeout_s
