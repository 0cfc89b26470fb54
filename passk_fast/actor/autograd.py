"""Types for custom autograd functions, which torch leaves untyped."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Context(Protocol):
    """What `forward` keeps for `backward`."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...


def call(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """`function.apply(*arguments)` of a function with one output."""
    out: Tensor = function.apply(*arguments)
    return out
