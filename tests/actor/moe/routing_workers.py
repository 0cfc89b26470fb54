"""What the ranks of the routing-replay tests run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from passk_fast.config import LogprobGapConfig, PolicyLoss
from passk_fast.data.types import Sequence
from tests.actor.workers import build


def gradients(
    folder: str,
    parallel: dict[str, Any],
    micro_batch_tokens: int,
    sequences: list[Sequence],
    mode: str,
    share_prompts: bool = False,
    bias: float = 0.0,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """(sums of a policy step's pass, gradient of every parameter on rank 0, else none).

    With `bias` the routers prefer the last expert by so much to the first.
    """
    from passk_fast.actor import loss as losses
    from passk_fast.weights.megatron import named_parameters

    parallel = {**parallel, "distributed_optimizer": False}
    options: dict[str, Any] = {"routing_replay": mode}
    if bias:
        options |= {"balance_bias_rate": 0.1, "logprob_gap": LogprobGapConfig(max=9.0)}
        options["loss"] = PolicyLoss(tis_clip=2.0)
    actor = build("qwen3_moe", folder, parallel, micro_batch_tokens, share_prompts, **options)
    for router in actor.routers.routers if bias else ():
        router.balance_bias += torch.linspace(0.0, bias, router.num_experts)
    batches = [replace(b, old_logprobs_T=b.rollout_logprobs_T) for b in actor.pack(sequences)]
    make = partial(losses.policy_loss, settings=actor.settings, denominator=100.0)
    sums, _ = actor.reduce_metrics(actor.backward(batches, make), actor.routing.take_counts())
    for parameter in named_parameters(actor.chunks).values():
        parameter.data.copy_(parameter.main_grad)  # full_tensors then gathers gradients
    full = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    dist.barrier()
    return sums, full if dist.get_rank() == 0 else {}


def supervised_gradients(
    folder: str, sequences: list[Sequence]
) -> tuple[float, dict[str, torch.Tensor]]:
    """(cross-entropy, its gradients) of one rank that replays."""
    from passk_fast.actor import loss as losses
    from passk_fast.weights.megatron import named_parameters

    actor = build(
        "qwen3_moe", folder, {"distributed_optimizer": False}, 120, routing_replay="replay"
    )
    make = partial(losses.cross_entropy, settings=actor.settings, denominator=100.0)
    results = actor.backward(actor.pack(sequences), make)
    sums, _ = actor.reduce_metrics(results, actor.routing.take_counts())
    for parameter in named_parameters(actor.chunks).values():
        parameter.data.copy_(parameter.main_grad)
    return sums["loss_sum"] / 100.0, {name: t.clone() for name, t in actor.full_tensors()}


def passes_without_gradient(folder: str, sequences: list[Sequence]) -> dict[str, float]:
    """Sums of a policy step of two on the same batch: log-probs are prepared before it."""
    actor = build("qwen3_moe", folder, {}, 120, routing_replay="replay")
    batches = actor.prepare(actor.pack(sequences), old_logprobs=True)
    return actor.policy_step(batches, denominator=100.0, lr=1e-3).sums


def build_error(kind: str, folder: str, mode: str, **parallel: Any) -> str:
    """The user's message of an actor that cannot be built."""
    from passk_fast.errors import ConfigError

    try:
        build(kind, folder, parallel, routing_replay=mode)
    except ConfigError as error:
        return str(error)
    return "no error"
