"""What the rest of the project asks of a sampler; `vllm.engine.RolloutEngine` is one.

Another sampler implements `Engine` in a package next to `vllm/`, and `rollout/make.py` names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from passk_fast.errors import DataError
from passk_fast.rollout.groups import GroupTracker

if TYPE_CHECKING:
    from torch import Tensor


class OpenWeights(Protocol):
    """An engine's weights while they are filled from outside."""

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """This rank's tensors by name, in the layout of `weights.placement.rollout_side`."""


class Engine(Protocol):
    """One rank's part of an engine.

    The ranks form `data_size` blocks of `tensor_size` consecutive ranks. Every block is an engine
    of its own, so blocks run independently; the ranks of one block make the same calls together.
    """

    data_rank: int
    """Which block this rank belongs to."""
    data_size: int
    tensor_rank: int
    """This rank's place in its block. Rank 0 drives the tracker."""
    tensor_size: int
    max_prompt_tokens: int

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
        """Sample `tracker.num_rollouts` responses to each prompt (token ids); returns at the end.

        After every step the engine passes the finished responses to `tracker.step` and applies the
        aborts and additions that it returns, until nothing runs and the tracker waits for nothing.
        Response n to a prompt depends on (`seed`, its key, n) and the weights alone. `prompt_keys`
        are the prompts' global indices, one per prompt. `temperature` defaults to the engine's own.
        """

    def open_parameters(self) -> OpenWeights:
        """This rank's weights, to be filled in place; `close_parameters` must follow."""

    def close_parameters(self, opened: OpenWeights, *, probe: bool = False) -> None:
        """Sample with the weights that have been filled. `probe` checks what the engine made of
        them, and raises DivergedError where it computes something else."""

    def sleep(self) -> None:
        """Give the engine's memory to the trainer, where the two share a device."""

    def wake_up(self) -> None:
        """Take the memory back; new weights must follow before `stream`."""

    def close(self) -> None:
        """Shut down; the default process group stays."""


def check_prompt(num_tokens: int, name: str, limit: int) -> None:
    """DataError unless a prompt has between 1 and `limit` tokens; `name` says which it is."""
    if num_tokens == 0:
        raise DataError(f"Prompt {name} has no tokens.")
    if num_tokens > limit:
        raise DataError(
            f"Prompt {name} has {num_tokens} tokens, more than rollout.max_prompt_tokens = "
            f"{limit}. Raise the limit or leave the prompt out."
        )
