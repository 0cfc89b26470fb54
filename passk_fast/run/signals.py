"""SIGTERM and SIGINT: ranks agree on them at the end of a step, save and leave.

If the step and its checkpoint do not finish within the grace period, the process exits hard, also
while it waits in a collective: a scheduler never waits for a rank that hangs.
"""

from __future__ import annotations

import os
import threading

import torch
import torch.distributed as dist

from passk_fast.errors import ExitCode
from passk_fast.process import at_signals


class StopFlag:
    """Raised by a signal, read by all ranks together."""

    def __init__(self, grace_s: float) -> None:
        """`grace_s`: seconds between the signal and the hard exit."""
        self._grace_s = grace_s
        self.raised = False
        """Whether this process got a signal."""

    def install(self) -> None:
        """Take over SIGTERM and SIGINT of this process."""
        at_signals(self._on_signal)

    def _on_signal(self, number: int) -> None:
        if self.raised:
            return
        self.raised = True
        timer = threading.Timer(self._grace_s, os._exit, (int(ExitCode.LOST_RANK),))
        timer.daemon = True
        timer.start()

    def agreed(self, device: torch.device, *, also: bool = False) -> bool:
        """True on every rank if any rank was signalled, or said `also`. A collective."""
        flag = torch.tensor(float(self.raised or also), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag > 0)
