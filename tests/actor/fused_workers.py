"""What the ranks of the fused-head tests run: the workers of the actor tests under another head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from tests.actor import workers

SMALL_GIB = 3e-5
"""About 30 rows a chunk, so that a micro-batch takes several."""


@contextmanager
def head(kind: str, dtype: str = "float32") -> Iterator[None]:
    """Actors built inside have this loss head."""
    plain = workers.run_config

    def changed(*args: Any, **kwargs: Any) -> Any:
        config = plain(*args, **kwargs)
        model = replace(config.model, dtype=dtype)
        return replace(config, lm_head_loss=kind, lm_head_loss_memory_gib=SMALL_GIB, model=model)

    workers.run_config = changed
    try:
        yield
    finally:
        workers.run_config = plain


def gradients(*args: Any, **kwargs: Any) -> Any:
    """`workers.gradients` with the fused head."""
    with head("fused"):
        return workers.gradients(*args, **kwargs)


def same_logprobs(*args: Any) -> float:
    """`workers.same_logprobs` with the fused head."""
    with head("fused"):
        return workers.same_logprobs(*args)


def main_gradients(
    folder: str, parallel: dict[str, Any], kind: str, dtype: str, supervised: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss sum, this rank's main gradients) under a head, on-policy or supervised."""
    from passk_fast.actor import loss as losses
    from passk_fast.weights.megatron import named_parameters

    with head(kind, dtype):
        actor = workers.build("qwen2", folder, {**parallel, "distributed_optimizer": False})
    make = losses.cross_entropy if supervised else losses.policy_loss
    batches = actor.pack(workers.make_sequences())
    results = actor.backward(batches, partial(make, settings=actor.settings, denominator=50.0))
    sums, _ = actor.reduce_metrics(results)
    grads = {name: p.main_grad.clone() for name, p in named_parameters(actor.chunks).items()}
    dist.barrier()
    return sums["loss_sum"], grads


def compare_heads(
    folder: str, parallel: dict[str, Any], dtype: str = "float32", supervised: bool = False
) -> dict[str, float]:
    """Largest relative distance between the two heads' gradients, and of their losses."""
    loss, want = main_gradients(folder, parallel, "unfused", dtype, supervised)
    fused_loss, got = main_gradients(folder, parallel, "fused", dtype, supervised)
    errors = [float((got[name] - g).norm() / (g.norm() or 1.0)) for name, g in want.items()]
    return {
        "gradient": max(errors),
        "loss": abs(fused_loss - loss) / abs(loss),
        "norm": float(sum(g.norm() for g in want.values())),
    }
