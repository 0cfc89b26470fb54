"""Learning rate as a function of the optimizer step."""

from __future__ import annotations

import math

from passk_fast.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`.

    Linear warm-up reaches `optim.lr` at step `lr_warmup_steps - 1`; then constant, or a half cosine
    down to `min_lr_ratio * lr` at the last step.
    """
    if step < optim.lr_warmup_steps:
        return optim.lr * (step + 1) / optim.lr_warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    span = max(1, total_steps - 1 - optim.lr_warmup_steps)
    progress = min(1.0, (step - optim.lr_warmup_steps) / span)
    floor = optim.min_lr_ratio
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
