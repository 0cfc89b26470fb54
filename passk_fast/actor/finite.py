"""Finds the first tensor that holds NaN or inf, in one pass over memory and without copies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from passk_fast.process_group import gather_json


def names_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors with a value that is not finite, in their order.

    The device is waited for once.
    """
    names, extremes = [], []
    for name, tensor in tensors:
        if tensor.numel():
            names.append(name)
            # The extremes are NaN where a value is; isfinite of all values takes ten times as long.
            extremes.append(torch.stack(torch.aminmax(tensor.detach())).double())
    if not names:
        return []
    finite = torch.isfinite(torch.stack(extremes)).all(dim=1).tolist()
    return [name for name, good in zip(names, finite, strict=True) if not good]


def found_by_rank(own: str) -> tuple[int, str] | None:
    """(lowest rank with something to say, what it says), on every rank: a collective.

    None where `own` is empty on all of them.
    """
    said = enumerate(gather_json(own))
    return next(((rank, text) for rank, text in said if text), None)
