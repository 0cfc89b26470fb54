"""Samples as bytes between ranks."""

from __future__ import annotations

import numpy as np
import pytest

from passk_fast.data.types import Rollout
from passk_fast.rollout.groups import MISSING
from passk_fast.rollout.wire import Samples, decode_samples, encode_samples


@pytest.mark.parametrize("count", [0, 1, 5])
def test_samples_survive_the_wire(count: int) -> None:
    samples = Samples(
        rollouts=[
            Rollout(
                token_ids=tuple(range(n)),
                logprobs=tuple(float(np.float32(-0.1 * t)) for t in range(n)),
                text="né日𝄞"[:n],
                finished=n % 2 == 0,
            )
            for n in range(count)
        ],
        rewards=[n / 7 for n in range(count)],
        failures=count,
        failure_kinds={"KeyError": "wrong: ü"} if count else {},
    )
    assert decode_samples(encode_samples(samples)) == samples


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_experts_travel_between_ranks(dtype: type) -> None:
    """With a response that was never sampled among the others."""
    rng = np.random.default_rng(0)
    sent = [
        Rollout(
            token_ids=(3,) * n,
            logprobs=(-1.0,) * n,
            text="é" * n,
            finished=True,
            routed_experts=rng.integers(0, 200, (n + 2, 3, 2)).astype(dtype),
        )
        for n in range(1, 4)
    ]
    sent.insert(1, MISSING)
    message = encode_samples(Samples(sent, [0.0] * 4, failures=1, failure_kinds={"KeyError": "ü"}))
    samples = decode_samples(message)
    assert samples.rollouts == sent
    assert samples.failure_kinds == {"KeyError": "ü"}
    for got, rollout in zip(samples.rollouts, sent, strict=True):
        if rollout.routed_experts is None:
            assert got.routed_experts is None
            continue
        assert got.routed_experts is not None
        assert got.routed_experts.dtype == dtype
        np.testing.assert_array_equal(got.routed_experts, rollout.routed_experts)
