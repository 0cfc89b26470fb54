"""Functions that ranks run for test_replicas.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from passk_fast.errors import DivergedError
from tests.actor.workers import build, make_sequences


def checked(kind: str, folder: str, parallel: dict[str, Any], bad: dict[int, str]) -> str:
    """What the check says after two steps, and after that one bit was flipped in the named weight
    of each bad rank."""
    actor = build(kind, folder, parallel)
    for _ in range(2):
        actor.policy_step(actor.pack(make_sequences()), denominator=100.0, lr=1e-2)
    actor.check_replicas()
    name = bad.get(dist.get_rank())
    if name is not None:
        weight = next(p for n, p in actor.parameters().items() if name in n)
        weight.data.view(torch.int32).view(-1)[-1] ^= 1
    try:
        actor.check_replicas()
    except DivergedError as error:
        return str(error)
    return ""
