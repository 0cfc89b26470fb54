"""The golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "golden"


def load(name: str) -> Any:
    """The parsed file tests/golden/NAME.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())
