"""Prompts, lengths and rewards without a data set, and responses without an engine.

What `passk-fast bench` runs on. Everything is a function of seeds, so ranks and runs agree.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from passk_fast.config import BenchConfig
from passk_fast.data.types import Prompt, Rollout
from passk_fast.errors import DataError
from passk_fast.rollout.engine_protocol import OpenWeights
from passk_fast.rollout.groups import GroupTracker
from passk_fast.seeding import seed_for

_TASK = "exact"
"""How answers are told apart; verdicts are drawn, and no verifier is asked."""


@dataclass(frozen=True)
class Lengths:
    """Response lengths in tokens: log-normal, or sampled from those in a file."""

    mean: float
    sigma: float
    longest: int
    seen: tuple[int, ...] = ()

    @classmethod
    def of(cls, bench: BenchConfig, longest: int) -> Lengths:
        """As the configuration says; DataError names the line of a bad file."""
        seen = _read_lengths(Path(bench.lengths_file)) if bench.lengths_file else ()
        return cls(bench.response_mean, bench.response_sigma, longest, seen)

    def of_response(self, seed: int, prompt_key: int, number: int) -> int:
        """Length of response `number` of a prompt, between 1 and `longest`."""
        rng = random.Random(seed_for(seed, "length", prompt_key, number))
        if self.seen:
            length = rng.choice(self.seen)
        else:
            # the mean of exp(mu + sigma x) is exp(mu + sigma^2 / 2)
            mu = math.log(self.mean) - self.sigma**2 / 2
            length = round(rng.lognormvariate(mu, self.sigma))
        return min(self.longest, max(1, length))


def _read_lengths(file: Path) -> tuple[int, ...]:
    lengths = []
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            length = json.loads(line)["tokens"]
        except (ValueError, KeyError, TypeError):
            length = None
        if not isinstance(length, int) or length < 1:
            raise DataError(
                f'{file}:{number}: want an object with "tokens", a positive whole number, such as '
                'the samples of a run have; got "' + line[:60] + '".'
            )
        lengths.append(length)
    if not lengths:
        raise DataError(f"{file}:1: there are no lengths in it.")
    return tuple(lengths)


class NumberTokenizer:
    """Text is token ids as decimal numbers between blanks."""

    unk_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, **_: object) -> list[int]:
        """The numbers of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int], **_: object) -> str:
        """The text of token ids."""
        return " ".join(map(str, ids))


def prompts(count: int, tokens: int, vocab: int, seed: int) -> list[Prompt]:
    """`count` prompts of `tokens` random tokens each."""
    out = []
    for i in range(count):
        rng = random.Random(seed_for(seed, "synthetic prompt", i))
        text = " ".join(str(rng.randrange(vocab)) for _ in range(tokens))
        out.append(Prompt(id=str(i), text=text, answer="", task=_TASK))
    return out


@dataclass(frozen=True)
class RandomVerifier:
    """A reward of 1 with probability `accuracy`, else 0, by a hash of prompt and response."""

    accuracy: float

    def __call__(self, prompt: Prompt, text: str) -> float:
        return float(random.Random(f"{prompt.id}:{text}").random() < self.accuracy)


class SyntheticEngine:
    """Takes the place of `RolloutEngine`, with random tokens instead of sampled ones.

    Responses end in the order of their lengths, as if all were decoded together, so early stop
    aborts what it would abort there.
    """

    tensor_rank, tensor_size = 0, 1

    def __init__(
        self,
        lengths: Lengths,
        vocab: int,
        longest_prompt: int,
        rank: int,
        size: int,
        targets: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`targets` stand for vLLM's parameters; None where weights are never handed on."""
        self.targets = targets or {}
        self.max_prompt_tokens = longest_prompt
        self.data_rank, self.data_size = rank, size
        self._lengths, self._vocab = lengths, vocab

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        tracker: GroupTracker,
        *,
        seed: int,
        prompt_keys: Sequence[int],
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> None:
        """Pass responses to the tracker, the shortest first; apply its aborts and additions."""
        queue = [
            (self._lengths.of_response(seed, prompt_keys[p], n), (p, n))
            for n in range(tracker.num_rollouts)
            for p in range(len(prompts))
        ]
        queue.sort()
        aborted: set[tuple[int, int]] = set()
        waiting = False
        while queue or waiting:
            ended = []
            if queue:
                length, key = queue.pop(0)
                if key not in aborted:
                    ended.append((key, self._response(seed, prompt_keys[key[0]], key[1], length)))
            actions = tracker.step(ended)
            aborted.update(actions.abort)
            queue += [
                (self._lengths.of_response(seed, prompt_keys[p], n), (p, n)) for p, n in actions.add
            ]
            waiting = actions.waiting

    def _response(self, seed: int, prompt_key: int, number: int, length: int) -> Rollout:
        rng = random.Random(seed_for(seed, "synthetic response", prompt_key, number))
        ids = tuple(rng.randrange(self._vocab) for _ in range(length))
        logprob = -math.log(self._vocab)
        return Rollout(
            token_ids=ids, logprobs=(logprob,) * length, text=" ".join(map(str, ids)), finished=True
        )

    def open_parameters(self) -> Self:
        """The weights are received like vLLM's, and never used."""
        return self

    def close_parameters(self, opened: OpenWeights, *, probe: bool = False) -> None:
        """Nothing to prepare."""

    def sleep(self) -> None:
        """Nothing to free."""

    def wake_up(self) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing to shut down."""
