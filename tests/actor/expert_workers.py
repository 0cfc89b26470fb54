"""What the ranks of the tests of experts run."""

from __future__ import annotations

from typing import Any

import torch

from passk_fast.config import ParallelConfig
from tests.actor.workers import build, hf_config, make_sequences


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

    from passk_fast.actor.experts import moe_layers
    from passk_fast.actor.grouped import GroupedExperts
    from passk_fast.actor.megatron_on_cpu import megatron_scope

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

    hf = hf_config(kind)
    hf.num_experts = experts
    try:
        transformer_config(hf, ParallelConfig(**parallel), "float32", "cpu")
    except ConfigError as error:
        return str(error)
    return ""
