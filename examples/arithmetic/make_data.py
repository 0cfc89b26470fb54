"""Sums as prompt files: `python make_data.py OUT` writes OUT/train.jsonl and OUT/test.jsonl.

Every pair of numbers from 1 to 20 is in one of the files, 64 of them in the second. Prompts are
chat messages, which training renders by the model's own template.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

LARGEST, HELD_OUT = 20, 64


def main(out: str) -> None:
    """Write both files, always the same."""
    numbers = range(1, LARGEST + 1)
    pairs = [(a, b) for a in numbers for b in numbers]
    random.Random(0).shuffle(pairs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("test", pairs[:HELD_OUT]), ("train", pairs[HELD_OUT:])):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for a, b in part:
                messages = [{"role": "user", "content": f"What is {a} + {b}?"}]
                row = {"id": f"{a}+{b}", "prompt": messages, "answer": a + b}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
