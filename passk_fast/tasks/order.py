"""The order of prompts: epochs of seeded shuffles, or endless; a checkpoint can resume both."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from passk_fast.data.types import Prompt
from passk_fast.errors import DataError
from passk_fast.seeding import seed_for

_ENDLESS = 1 << 62
"""Number of prompts of an endless data set."""


class EndlessPrompts(Sequence[Prompt]):
    """Prompts by number, each made when it is asked for; there is one for every number from 0.

    `len` and iteration stop at the first `shown`, for checks that look at a whole data set.
    """

    endless = True

    def __init__(self, make: Callable[[int], Prompt], shown: int) -> None:
        self._make, self._shown = make, shown

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._shown))]
        return self._make(index)

    def __len__(self) -> int:
        return self._shown

    def __iter__(self) -> Iterator[Prompt]:
        return map(self._make, range(self._shown))


class PromptOrder:
    """Every prompt once per epoch, in an order that depends on (seed, epoch) alone.

    Without a number of prompts they are taken as they are numbered, each once.
    """

    @classmethod
    def of(cls, prompts: Sequence[Prompt], seed: int) -> PromptOrder:
        """The order in which a data set is trained on."""
        return cls(None if getattr(prompts, "endless", False) else len(prompts), seed)

    def __init__(self, num_prompts: int | None, seed: int) -> None:
        """`num_prompts` None: endless. ValueError for an empty data set."""
        if num_prompts is not None and num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {num_prompts}.")
        self._num_prompts = num_prompts or _ENDLESS
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._shuffled = self._shuffle(0)

    def _shuffle(self, epoch: int) -> Sequence[int]:
        if self._num_prompts == _ENDLESS:
            return range(_ENDLESS)
        order = list(range(self._num_prompts))
        random.Random(seed_for(self._seed, "order", epoch)).shuffle(order)
        return order

    def take(self, count: int, chance: Callable[[int], float] | None = None) -> list[int]:
        """The next `count` prompt indices, going on into the next epoch where one ends.

        `chance` gives for a prompt the probability, above 0, with which it is taken; otherwise it
        is left out until the next epoch.
        """
        taken: list[int] = []
        while len(taken) < count:
            if self._position == self._num_prompts:
                self._epoch, self._position = self._epoch + 1, 0
                self._shuffled = self._shuffle(self._epoch)
            prompt = self._shuffled[self._position]
            if chance is None or self._uniform() < chance(prompt):
                taken.append(prompt)
            self._position += 1
        return taken

    def _uniform(self) -> float:
        """In [0, 1), by the place in the order alone."""
        return seed_for(self._seed, "pass over", self._epoch, self._position) / 2**31

    def state_dict(self) -> dict[str, int]:
        """Epoch, position in it, and the size of the data set (2^62 for an endless one)."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "num_prompts": self._num_prompts,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; DataError where the data set has another size now."""
        if state["num_prompts"] != self._num_prompts:
            raise DataError(
                f"the checkpoint was made with {state['num_prompts']} training prompts, the data "
                f"set has {self._num_prompts} now: its position cannot be found again."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._shuffled = self._shuffle(self._epoch)
