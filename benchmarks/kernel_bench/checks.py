"""Correctness columns: a provider's loss, log-probs and gradients against float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_bench.peers import Provider, Run
from benchmarks.kernel_bench.problems import LOSS, Problem
from passk_fast.kernels import OutputHead, OutputLogits, reference


def relative(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error, summed in float64 by blocks of rows."""
    error = norm = 0.0
    for a, b in zip(got.split(4096), want.split(4096), strict=True):
        error += float((a.double() - b.double()).square().sum())
        norm += float(b.double().square().sum())
    return (error / (norm or 1.0)) ** 0.5


def head_answer(problem: Problem) -> dict[str, Tensor]:
    """float64 loss, log-probs, entropies and gradients from the exact inputs."""
    x = problem.hidden.detach().double().requires_grad_()
    w = problem.weight.detach().double().requires_grad_()
    head = OutputHead(hidden=x, weight=w)
    loss, _ = reference.linear_policy_loss(head, problem.rows(), LOSS)
    loss.backward()
    with torch.no_grad():
        logp, entropy = reference.token_logprob(head, problem.targets)
    assert x.grad is not None
    assert w.grad is not None
    return {
        "loss": loss.detach(), "logp": logp, "entropy": entropy,
        "hidden": x.grad, "weight": w.grad,
    }  # fmt: skip


def logits_answer(problem: Problem, logits: Tensor) -> dict[str, Tensor]:
    """float64 loss and gradient from the exact logits."""
    z = logits.detach().double().requires_grad_()
    loss, _ = reference.policy_loss(OutputLogits(logits=z), problem.rows(), LOSS)
    loss.backward()
    assert z.grad is not None
    return {"loss": loss.detach(), "logits": z.grad}


def call(run: Run, problem: Problem, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """One forward and backward: loss, log-probs, gradients by leaf name, back end."""
    for leaf in leaves.values():
        leaf.grad = None
    result = run(problem, leaves)
    if result.loss is not None:
        result.loss.backward()
    loss = None if result.loss is None else result.loss.detach()
    found: dict[str, Any] = {"backend": result.backend, "loss": loss}
    found |= {"logp": result.logp, "entropy": result.entropy}
    return {**found, **{name: leaf.grad for name, leaf in leaves.items()}}


def errors(
    provider: Provider, got: dict[str, Any], again: dict[str, Any], want: dict[str, Tensor],
    problem: Problem,
) -> dict[str, Any]:  # fmt: skip
    """The columns; a mean cross-entropy has none."""
    if provider.cross_entropy:
        return {"note": "mean cross-entropy: another loss"}
    found: dict[str, Any] = {}
    if got["loss"] is not None:
        size = max(abs(float(want["loss"])), 1e-3)
        found["loss_relative"] = abs(float(got["loss"]) - float(want["loss"])) / size
    for name in ("logp", "entropy"):
        if got[name] is not None and name in want:
            gap = (got[name].double() - want[name]).abs()
            known = problem.mask & torch.isfinite(got[name])
            found[f"{name}_max"] = float(gap[known].max()) if known.any() else None
    same = []
    for name in ("hidden", "weight", "logits"):
        if got.get(name) is None or name not in want:
            continue
        found[f"d{name}_relative"] = relative(got[name], want[name])
        same.append(torch.equal(got[name], again[name]))
        if name != "weight":
            idle = want[name].abs().amax(dim=1) == 0
            found["idle_rows_zero"] = not bool(got[name][idle].any())
    if same:
        found["bitwise_repeat"] = all(same)
    return found
