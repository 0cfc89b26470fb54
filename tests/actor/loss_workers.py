"""What the ranks of the loss tests run: the actor under options of the loss, and a plain reference.

Sampler and old log-probs lie near the model's own, by noise that depends on a token's sequence and
position alone, so that every clip and bound is met on both sides whatever the packing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.data import types
from passk_fast.kernels import PolicyLoss
from tests.actor import fused_workers, workers

DENOMINATOR = 50.0


def noise(sequence: Tensor | int, position: Tensor) -> Tensor:
    """Between -1 and 1, float64, the same for a token wherever it is packed."""
    return torch.sin(1.0 + 12.9 * torch.as_tensor(sequence).double() + 7.3 * position.double())


def response_positions(sequence: types.Sequence) -> Tensor:
    """Positions that predict the response's tokens."""
    return torch.arange(sequence.prompt_length - 1, len(sequence.token_ids) - 1)


def old_logprobs(sequence: Tensor | int, position: Tensor, rollout: Tensor) -> Tensor:
    """The trainer's log-probs before the update: off the sampler's by up to 0.3 nats."""
    return rollout.double() + 0.3 * noise(sequence, position + 1000)


def model_of(folder: str) -> Any:
    """The folder's model by transformers, in float64 (its norms compute in float32)."""
    from transformers import AutoModelForCausalLM

    # transformers' SDPA leaves out soft caps.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()


def response_logprobs(model: Any, sequence: types.Sequence) -> Tensor:
    """Log-probs [n] of the response's tokens."""
    tokens = torch.tensor([sequence.token_ids])
    log_prob = model(tokens).logits[0, :-1].double().log_softmax(dim=-1)
    return log_prob.gather(1, tokens[0, 1:, None])[sequence.prompt_length - 1 :, 0]


@lru_cache
def near_policy(folder: str) -> list[types.Sequence]:
    """Sequences whose sampler's log-probs are the model's, off by up to 0.5 nats."""
    model = model_of(folder)
    found = []
    with torch.no_grad():
        for i, s in enumerate(workers.make_sequences()):
            logp = response_logprobs(model, s) + 0.5 * noise(i, response_positions(s))
            found.append(replace(s, rollout_logprobs=tuple(logp.float().tolist())))
    return found


def plain_loss(
    logp: Tensor, old: Tensor, rollout: Tensor, advantage: float, loss: PolicyLoss
) -> Tensor:
    """The summed loss of one response, written down from the papers."""
    log_ratio = logp - old
    if loss.ratio == "sequence":
        log_ratio = log_ratio.mean().expand_as(log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
    term = {
        "clip": -torch.minimum(ratio * advantage, clipped * advantage),
        "reinforce": -ratio * advantage,
        "cispo": -clipped.detach() * advantage * logp,
    }[loss.objective]
    weight = (old - rollout).exp()
    kept = weight >= loss.importance_min
    if loss.importance_max:
        kept &= weight <= loss.importance_max
    weight = weight.clamp(max=loss.tis_clip) if loss.tis_clip else torch.ones_like(weight)
    return (term * weight * kept).sum()


def reference(folder: str, loss: PolicyLoss) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradient by Hugging Face name): response by response, without packing."""
    model = model_of(folder)
    total = torch.zeros((), dtype=torch.float64)
    for i, s in enumerate(near_policy(folder)):
        rollout = torch.tensor(s.rollout_logprobs, dtype=torch.float64)
        old = old_logprobs(i, response_positions(s), rollout)
        logp = response_logprobs(model, s)
        total = total + plain_loss(logp, old, rollout, s.advantage, loss)
    (total / DENOMINATOR).backward()
    return float(total) / DENOMINATOR, {name: p.grad for name, p in model.named_parameters()}


def gradients(
    kind: str,
    folder: str,
    parallel: dict[str, Any],
    micro_batch_tokens: int,
    share_prompts: bool,
    head: str,
    loss: PolicyLoss,
) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradient by Hugging Face name) of the actor; gradients on rank 0, off it none."""
    from passk_fast.actor import loss as losses
    from passk_fast.weights.megatron import named_parameters

    parallel = {**parallel, "distributed_optimizer": False}
    with fused_workers.head(head):
        actor = workers.build(kind, folder, parallel, micro_batch_tokens, share_prompts, loss=loss)
    batches = [_off_policy(batch) for batch in actor.pack(near_policy(folder))]
    make = partial(losses.policy_loss, settings=actor.settings, denominator=DENOMINATOR)
    results = actor.backward(batches, make)
    speaks = actor.mesh.is_last_stage and actor.mesh.tensor_rank == 0
    total = torch.tensor(sum(float(r["loss_sum"]) for r in results) if speaks else 0.0)
    dist.all_reduce(total)
    for parameter in named_parameters(actor.chunks).values():
        parameter.data.copy_(parameter.main_grad)  # full_tensors then gathers gradients
    full = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    dist.barrier()
    return float(total) / DENOMINATOR, full if dist.get_rank() == 0 else {}


def _off_policy(batch: types.PackedBatch) -> types.PackedBatch:
    """With old log-probs."""
    old = old_logprobs(batch.sequence_index_T, batch.positions_T, batch.rollout_logprobs_T)
    return replace(batch, old_logprobs_T=old.float().masked_fill(~batch.mask_T, 0.0))
