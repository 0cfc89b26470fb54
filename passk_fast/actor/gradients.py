"""Whether gradients are finite, and where they first were not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from passk_fast.actor.finite import found_by_rank, names_not_finite
from passk_fast.weights.megatron import named_parameters


class GradientWatch:
    """Looks at this rank's own gradients before ranks add theirs up, after which all have the NaN
    of one. `wrap` is given its `look`."""

    def __init__(self) -> None:
        self._own = ""

    def look(self, chunks: Sequence[DistributedDataParallel]) -> None:
        """Remember which parameters have a gradient that is not finite; one pass over memory."""
        self._own = _bad_parameters(chunks) if names_not_finite(_buffers(chunks)) else ""

    def place(self, chunks: Sequence[DistributedDataParallel]) -> str:
        """Parameters and rank whose gradient was not finite, of the lowest such rank, in words;
        empty where those of all ranks are finite, also added up. A collective."""
        found = found_by_rank("x" if names_not_finite(_buffers(chunks)) else "")
        if found is None:
            return ""
        own = found_by_rank(self._own)
        if own is not None:
            return f"{own[1]} on rank {own[0]}"
        summed = found_by_rank(_bad_parameters(chunks))
        return f"{summed[1]} on rank {summed[0]}, over all ranks," if summed else "a gradient"


def _buffers(chunks: Sequence[DistributedDataParallel]) -> Iterator[tuple[str, Tensor]]:
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield "", buffer.grad_data


def _bad_parameters(chunks: Sequence[DistributedDataParallel]) -> str:
    """The first in the order of the model; with others also the last, which the backward pass met
    first. Empty where none is."""
    parameters = named_parameters(chunks).items()
    names = names_not_finite((name, getattr(p, "main_grad")) for name, p in parameters)  # noqa: B009
    if len(names) < 2:
        return "".join(f"the gradient of {name}" for name in names)
    return f"the gradient of {names[0]} ({len(names)} parameters in all, the last is {names[-1]})"
