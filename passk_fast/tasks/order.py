"""The order of prompts: epochs of seeded shuffles that a checkpoint can resume."""

from __future__ import annotations

import random
from collections.abc import Callable

from passk_fast.errors import DataError
from passk_fast.seeding import seed_for


class PromptOrder:
    """Every prompt once per epoch, in an order that depends on (seed, epoch) alone."""

    def __init__(self, num_prompts: int, seed: int) -> None:
        """ValueError for an empty data set."""
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {num_prompts}.")
        self._num_prompts = num_prompts
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._shuffled = self._shuffle(0)

    def _shuffle(self, epoch: int) -> list[int]:
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
        """Epoch, position in it, and the size of the data set."""
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
