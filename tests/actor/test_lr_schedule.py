"""The learning rate."""

import pytest

from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.config import OptimConfig


def test_warm_up_then_constant() -> None:
    optim = OptimConfig(lr=1.0, lr_warmup_steps=4)
    assert [learning_rate(optim, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_ends_at_its_floor() -> None:
    optim = OptimConfig(lr=2.0, lr_warmup_steps=0, schedule="cosine", min_lr_ratio=0.1)
    rates = [learning_rate(optim, step, 11) for step in range(11)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(2.0 * 0.55)
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
