"""Makes puzzles by reasoning-gym, as a program: a request as JSON in, puzzles as JSON lines out.

It runs in a Python of its own with a fixed hash seed, on which four of the generators depend.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Literal, TypedDict

from reasoning_gym.coaching.base_curriculum import BaseCurriculum
from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum

from passk_fast.seeding import seed_for

Puzzle = dict[str, object]
_EASIER: dict[str, dict[str, object]] = {"sokoban": {"min_boxes": 2, "max_boxes": 4}}
"""In place of settings with which making one puzzle takes many seconds."""
_TRIES = 20
"""Draws per puzzle that is wanted, before a generator is taken to have no other ones."""


def _accept() -> None:
    """The check of settings that have none."""


def configuration(generator: str, level: int, options: Mapping[str, object]) -> dict[str, object]:
    """The generator's settings at a level of its curriculum, or at the nearest one below that it
    has itself and accepts (some curricula name values that their generators refuse)."""
    settings = DATASETS[generator][1]
    default = vars(settings())
    for lower in range(level, -1, -1):
        if generator not in CURRICULA:
            break
        curriculum: BaseCurriculum = create_curriculum(generator)
        curriculum.set_global_level(lower)
        made = {
            **vars(curriculum.generate_configuration()),
            **_EASIER.get(generator, {}),
            **options,
        }
        try:
            getattr(settings(**made), "validate", _accept)()
        except AssertionError:
            continue
        return {name: value for name, value in made.items() if value != default.get(name)}
    return dict(options)


def puzzles(generator: str, config: Mapping[str, object], seed: int, most: int) -> Iterator[Puzzle]:
    """Distinct puzzles, at most `most` draws."""
    dataset, settings = DATASETS[generator]
    made = dataset(config=settings(**{**config, "seed": seed, "size": most}))
    seen: set[str] = set()
    for i in range(most):
        entry = made[i]
        answer = entry["answer"]
        text = "" if answer is None else str(answer)
        if entry["question"] in seen or "Integral(" in text:  # the second: left unsolved
            continue
        seen.add(entry["question"])
        yield {
            "generator": generator,
            "config": json.dumps(config, sort_keys=True),
            "question": entry["question"],
            "answer": text,
            "metadata": json.dumps(entry["metadata"]),
        }


class Request(TypedDict):
    """What to make."""

    generators: list[str]
    split: Literal["train", "test"]
    seed: int
    difficulty: int
    options: dict[str, dict[str, object]]
    train_per_generator: int
    test_per_generator: int


def split(request: Request, generator: str) -> Iterator[Puzzle]:
    """The puzzles of one split of a generator; training ones leave out every held-out one."""
    config = configuration(generator, request["difficulty"], request["options"].get(generator, {}))
    seed, wanted = request["seed"], request["test_per_generator"]
    made = puzzles(generator, config, seed_for(seed, f"puzzles-test-{generator}"), _TRIES * wanted)
    held_out = list(islice(made, wanted))
    if request["split"] == "test":
        yield from held_out
        return
    hidden = {puzzle["question"] for puzzle in held_out}
    wanted = request["train_per_generator"]
    made = puzzles(generator, config, seed_for(seed, f"puzzles-train-{generator}"), _TRIES * wanted)
    yield from islice((p for p in made if p["question"] not in hidden), wanted)


def main() -> None:
    """Answer the request on standard input."""
    request: Request = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr  # some generators print
    for generator in request["generators"]:
        for puzzle in split(request, generator):
            out.write(json.dumps(puzzle) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
