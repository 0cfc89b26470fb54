"""The task `puzzles`: reasoning-gym's generators in the paper's seven categories.

Puzzles are made by a Python of its own (`puzzle_generation`) and judged in a sandbox
(`puzzle_scoring`), since scorers execute answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from passk_fast.config import DataConfig, PuzzlesConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError
from passk_fast.seeding import seed_for
from passk_fast.tasks.answers import last_answer, tagged_answer
from passk_fast.tasks.packages import require_package
from passk_fast.tasks.puzzle_categories import CATEGORIES, GENERATORS
from passk_fast.tasks.sandbox import Limits, SandboxError, shared_sandbox, unavailable_reason

_SCORING = "passk_fast.tasks.puzzle_scoring"
LIMITS = Limits(wall_s=5.0, cpu_s=5, memory_mib=1024)
_COLUMNS = ("generator", "config", "metadata")
_INSTRUCTION = "\n\nThink, then give the final answer alone inside <answer> </answer> tags."
_MAKE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from passk_fast.tasks.puzzle_generation import main
main()
"""
_FRESH_PER_GENERATOR = 64
"""Solutions for a warm start that are made at a time."""


def chosen_generators(config: PuzzlesConfig) -> list[str]:
    """Names in the order of the configuration; ConfigError for one that is none."""
    chosen: list[str] = []
    for name in config.generators or GENERATORS:
        if name not in CATEGORIES and name not in GENERATORS:
            raise ConfigError(
                f"data.puzzles.generators: {name!r} is no generator and no category; categories: "
                f"{', '.join(CATEGORIES)}; generators: {', '.join(GENERATORS)}."
            )
        chosen += CATEGORIES.get(name, (name,))
    return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Puzzles:
    """The task as a configuration sets it: splits, solutions and verifier."""

    config: PuzzlesConfig
    seed: int
    name: str = "puzzles"

    def verify(self, prompt: Prompt, response: str) -> float:
        """The reward of the last `<answer>` tag; without one 0.

        Raises:
            VerifierFailed: the scorer raised, ran out of time or memory, or gave no number.
        """
        answer = last_answer(response)
        if answer is None:
            return 0.0
        columns = {name: str(prompt.columns[name]) for name in _COLUMNS}
        generator, config, metadata = columns.values()
        sandbox = shared_sandbox(limits=LIMITS, preload=(_SCORING,))
        sandbox.prepare(f"{_SCORING}:warm", generator, config)
        value = sandbox.judge(
            f"{_SCORING}:score", generator, config, answer.strip(), prompt.answer, metadata
        )
        return value if self.config.partial_credit else float(value >= 1.0)

    def answer_of(self, response: str) -> str:
        """The content of the last `<answer>` tag, without one the response."""
        return tagged_answer(response)

    def part_of(self, prompt: Prompt) -> str:
        """The generator's category."""
        generator = prompt.columns["generator"]
        return next(name for name, members in CATEGORIES.items() if generator in members)

    @property
    def binary(self) -> bool:
        """Whether rewards are 0 or 1 alone."""
        return not self.config.partial_credit

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError unless the row has the columns of a puzzle and can be judged here."""
        for name in _COLUMNS:
            if not isinstance(prompt.columns.get(name), str):
                raise ValueError(f"field {name!r} is missing: a puzzle has it as text")
        if prompt.columns["generator"] not in GENERATORS:
            raise ValueError(f"field 'generator' names none: {prompt.columns['generator']!r}")
        _check_machine()

    def _made(self, split: str, config: PuzzlesConfig, seed: int) -> list[Prompt]:
        _check_machine()
        request = {
            "generators": chosen_generators(config),
            "split": split,
            "seed": seed,
            "difficulty": config.difficulty,
            "options": _options(config),
            "train_per_generator": config.train_per_generator,
            "test_per_generator": config.test_per_generator,
        }
        return [
            Prompt(
                id=f"puzzle-{split}-{row['generator']}-{i}",
                text=row["question"] + _INSTRUCTION,
                answer=row["answer"],
                task=self.name,
                columns={name: row[name] for name in _COLUMNS},
            )
            for i, row in enumerate(_generate(request))
        ]

    def train_prompts(self) -> list[Prompt]:
        """Training puzzles, none of them held out."""
        return self._made("train", self.config, self.seed)

    def test_prompts(self) -> list[Prompt]:
        """Held-out puzzles, all generators in turn."""
        made = self._made("test", self.config, self.seed)
        by_generator: dict[object, list[Prompt]] = {}
        for prompt in made:
            by_generator.setdefault(prompt.columns["generator"], []).append(prompt)
        groups = by_generator.values()
        longest = max(map(len, groups), default=0)
        return [group[i] for i in range(longest) for group in groups if i < len(group)]

    def solutions(self, seed: int) -> Iterator[tuple[str, str]]:
        """Endless (prompt, solution) texts, of puzzles with a stored answer, none held out.

        Raises:
            ConfigError: no chosen generator stores answers, or all its puzzles are held out.
        """
        hidden = {prompt.text for prompt in self.test_prompts()}
        config = replace(self.config, train_per_generator=_FRESH_PER_GENERATOR)
        number = 0
        while True:
            fresh = self._made("train", config, seed_for(seed, "puzzles-warm-start", number))
            fresh = [p for p in fresh if p.answer and p.text not in hidden]
            if not fresh:
                raise ConfigError(
                    "data.puzzles: no puzzle with a stored answer is left to warm-start from; "
                    "choose other generators, or lower data.puzzles.test_per_generator."
                )
            for prompt in fresh:
                yield prompt.text, f"<answer>{prompt.answer}</answer>"
            number += 1

    def alphabet(self) -> str:
        """All characters of the prompts and answers of both splits, sorted."""
        prompts = self.train_prompts() + self.test_prompts()
        texts = (text for p in prompts for text in (p.text, p.answer))
        return "".join(sorted(set("<answer></answer>").union(*texts)))


def check_puzzles(config: DataConfig) -> None:
    """Try the settings of the generators without making the splits.

    Raises:
        ConfigError: an unknown generator, or a setting that it refuses.
    """
    chosen_generators(config.puzzles)
    options = _options(config.puzzles)
    if config.generate == "puzzles" and not config.train:
        _check_machine()
        if options:
            few = replace(config.puzzles, train_per_generator=1, test_per_generator=1)
            Puzzles(replace(few, generators=tuple(options)), config.seed).test_prompts()


def _check_machine() -> None:
    require_package("reasoning_gym", "reasoning-gym", "puzzles.txt", "puzzles")
    reason = unavailable_reason()
    if reason is not None:
        raise SandboxError(
            "the task 'puzzles' executes answers, and nothing can contain them on this machine: "
            f"{reason}. See docs/sandbox.md."
        )


def _options(config: PuzzlesConfig) -> dict[str, dict[str, object]]:
    options: dict[str, dict[str, object]] = {}
    for option in config.options:
        place, _, text = option.partition("=")
        generator, _, setting = place.partition(".")
        if generator not in GENERATORS:
            raise ConfigError(f"data.puzzles.options: {option!r} names no generator.")
        try:
            value: object = json.loads(text)
        except json.JSONDecodeError:
            value = text
        options.setdefault(generator, {})[setting] = value
    return options


def _generate(request: dict[str, object]) -> list[dict[str, str]]:
    """The answer of `puzzle_generation`."""
    return [json.loads(line) for line in _generated_lines(json.dumps(request))]


@lru_cache(maxsize=4)
def _generated_lines(request: str) -> tuple[str, ...]:
    """One puzzle a line; kept, since a run asks for the same split several times."""
    paths = json.dumps([os.path.abspath(path) for path in sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _MAKE, paths],
        input=request,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or ["it ended without a word"]
        raise ConfigError(
            f"data.puzzles: a generator refused its settings or failed: {lines[-1]}. Check "
            "data.puzzles.options and data.puzzles.difficulty."
        )
    return tuple(ended.stdout.splitlines())
