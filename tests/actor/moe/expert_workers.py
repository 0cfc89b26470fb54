"""What the ranks of the tests of experts run."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import torch

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import drop_mesh, make_mesh
from passk_fast.config import ModelConfig, ParallelConfig
from tests.actor.workers import build, make_sequences, model_shape, run_config


def balance(
    kind: str, folder: str, parallel: dict[str, Any], tokens: int, share: bool, **algorithm: Any
) -> tuple[dict[str, float], list[list[float]]]:
    """(sums of a policy step, loads [layers, E] of this rank's stage or biases after it)."""
    actor = build(kind, folder, parallel, tokens, share, **algorithm)
    result = actor.policy_step(actor.pack(make_sequences()), denominator=100.0, lr=1e-2)
    assert result.applied
    biases = [r.balance_bias for r in actor.routers.routers if r.balance_bias is not None]
    return result.sums, [b.tolist() for b in biases]


def bias_at_work(kind: str, folder: str, **algorithm: Any) -> tuple[float, float]:
    """Mean over layers of the largest load over the mean, at first and after thirty steps."""
    actor = build(kind, folder, {}, **algorithm)
    batches = actor.pack(make_sequences())
    peaks = []
    for _ in range(30):
        result = actor.policy_step(batches, denominator=1e9, lr=0.0)
        peaks.append(result.sums["expert_peak_sum"] / result.sums["expert_layers"])
    return peaks[0], peaks[-1]


def reference_balance(folder: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The balancing loss of a layer, sequence by sequence with transformers' model, and gradients
    of its sum over layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    experts, topk = model.config.num_experts, model.config.num_experts_per_tok
    sequences = make_sequences()
    total = torch.zeros(())
    for s in sequences:
        out = model(torch.tensor([s.token_ids]), output_router_logits=True)
        for logits in out.router_logits:
            scores = logits[:-1].softmax(dim=-1)  # the last token predicts nothing
            count = torch.zeros(experts)
            for row in scores.topk(topk, dim=-1).indices:
                count[row] += 1
            f = experts / (topk * len(scores)) * count
            total = total + (f * scores.mean(dim=0)).sum() / len(sequences)
    total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(total.detach()) / len(out.router_logits), found


def grouped_gap(kind: str, folder: str, counts: list[int]) -> float:
    """Largest difference of outputs and gradients of a layer's experts, together and one by one."""
    from megatron.core.transformer.moe.experts import SequentialMLP

    from passk_fast.actor.cpu.megatron_shim import megatron_scope
    from passk_fast.actor.moe.experts import moe_layers
    from passk_fast.actor.moe.grouped import GroupedExperts

    actor = build(kind, folder, {})
    experts = moe_layers(actor.chunks[0])[0][1].experts
    assert isinstance(experts, GroupedExperts)
    torch.manual_seed(1)
    size = sum(counts)
    found = []
    for forward in (GroupedExperts.forward, SequentialMLP.forward):
        torch.manual_seed(1)
        x, probs = torch.randn(size, 64, requires_grad=True), torch.rand(size, requires_grad=True)
        weights = list(experts.parameters())
        with megatron_scope("cpu"):
            out, _ = forward(experts, x, torch.tensor(counts), probs)
            inputs = [x, probs, *weights]
            grads = torch.autograd.grad(out.square().sum(), inputs, materialize_grads=True)
        found.append([out, *grads])
    return max(
        float((a - b).detach().abs().max()) if a.numel() else 0.0
        for a, b in zip(*found, strict=True)
    )


def refused(kind: str, folder: str, parallel: dict[str, Any], experts: int) -> str:
    """Why an actor with this many experts cannot be built."""
    from passk_fast.actor.model import transformer_config
    from passk_fast.errors import ConfigError

    shape = replace(model_shape(kind), num_experts=experts)
    try:
        transformer_config(shape, ParallelConfig(**parallel), "float32", "cpu")
    except ConfigError as error:
        return str(error)
    return ""


def bfloat16_beside_float32(folder: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradient norm of a supervised step in float32 and bfloat16, then of a policy step;
    what bfloat16's weights hold after both."""
    out: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        drop_mesh()
        config = replace(run_config(parallel, 4096), model=ModelConfig(dtype=dtype))
        actor = Actor(config, model_shape("qwen3_moe"), make_mesh(config.parallel, "cpu"))
        actor.load_folder(folder)
        before = {name: p.detach().clone() for name, p in actor.parameters().items()}
        batches = actor.pack(make_sequences())
        steps = [
            actor.supervised_step(batches, denominator=400.0, lr=1e-3),
            actor.policy_step(batches, denominator=400.0, lr=1e-3),
        ]
        assert all(step.applied for step in steps)
        out[dtype] = [steps[0].sums["loss_sum"], *(step.grad_norm for step in steps)]
    parameters = actor.parameters()
    halves, masters = _halves_and_masters(actor)
    return out | {
        "types": {(p.dtype, p.main_grad.dtype) for p in parameters.values()},
        "held": sum(half.numel() for half in halves),
        "weights": actor.num_weights,
        "in_sync": all(map(torch.equal, halves, (master.bfloat16() for master in masters))),
        "rounded": sum(int((m != m.bfloat16()).sum()) for m in masters),
        "least_move": min(
            float((p.detach() - before[name]).abs().max()) for name, p in parameters.items()
        ),
    }


def _halves_and_masters(actor: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """This rank's shards of bfloat16 weights, and the float32 ones that the optimizer moves."""
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for optimizer in actor.optimizer.chained_optimizers:
        for out, groups in zip(
            found,
            (optimizer.shard_float16_groups, optimizer.shard_fp32_from_float16_groups),
            strict=True,
        ):
            out.extend(tensor for group in groups for tensor in group)
    return found


def is_freed(kind: str, folder: str) -> bool:
    """Whether a model goes with its actor, after a step of training."""
    actor = build(kind, folder, {})
    actor.policy_step(actor.prepare(actor.pack(make_sequences())), denominator=100.0, lr=1e-3)
    model = weakref.ref(actor.chunks[0])
    del actor
    gc.collect()
    return model() is None
