"""Where a run stands; a checkpoint keeps it, and what its parts remember on top."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Counters of a run. The loop, the update and the guards each advance their own."""

    step: int = 0
    """Batches trained on so far."""
    optimizer_step: int = 0
    """Optimizer steps tried so far: the position in the learning-rate schedule."""
    bad_steps: int = 0
    """Optimizer steps in a row whose gradient was not finite."""
    bad_gap_steps: int = 0
    """Steps in a row in which sampler and trainer disagreed more than [logprob_gap] allows."""
    skipped_steps: int = 0
    """All optimizer steps whose gradient was not finite."""
    spikes: int = 0
    """All optimizer steps whose gradient norm was a spike (optim.spike_factor)."""
    zero_advantage_steps: int = 0
    """Steps in a row whose groups all had zero advantage."""
