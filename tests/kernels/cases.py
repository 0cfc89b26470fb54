"""Random problems, comparisons with float64, and what the ranks of the kernel tests run."""

from __future__ import annotations

import dataclasses
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

import passk_fast.kernels as kernels
from passk_fast.kernels import LossRows, OutputHead, OutputLogits, PolicyLoss, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILY: dict[str, dict[str, Any]] = {
    "clip": {"loss": PolicyLoss(clip_low=0.1, clip_high=0.15)},
    "on-policy": {"on_policy": True},
    "dual-clip": {"loss": PolicyLoss(dual_clip=1.2)},
    "reinforce": {"loss": PolicyLoss(objective="reinforce")},
    "cispo": {"loss": PolicyLoss(objective="cispo", clip_low=0.1, clip_high=0.1)},
    "tis": {"loss": PolicyLoss(tis_clip=1.05)},
    "importance-mask": {"loss": PolicyLoss(importance_min=0.9, importance_max=1.1)},
    "k1": {"loss": PolicyLoss(kl_coef=0.3, kl_estimator="k1")},
    "k2": {"loss": PolicyLoss(kl_coef=0.3, kl_estimator="k2")},
    "k3": {"loss": PolicyLoss(kl_coef=0.3, kl_estimator="k3")},
    "temperature": {"temperature": 0.7},
    "row-temperature": {"row_temperature": True},
    "entropy-bonus": {"loss": PolicyLoss(entropy_coef=0.2)},
    "soft-cap": {"soft_cap": 3.0},
    "soft-cap-30": {"soft_cap": 30.0, "temperature": 0.8},
    "soft-cap-entropy": {"soft_cap": 2.5, "loss": PolicyLoss(entropy_coef=0.2)},
    "gspo": {"loss": PolicyLoss(ratio="sequence", clip_low=0.02, clip_high=0.02)},
    "gspo-entropy": {"loss": PolicyLoss(ratio="sequence", entropy_coef=0.1)},
}


def problem(
    rows: int = 33, hidden: int = 24, padded: int = 104, vocab: int = 97, seed: int = 0
) -> dict[str, Any]:
    """float32 inputs of `linear_policy_loss` by the names of its typed inputs.

    Targets are likely under the model, ratios are off 1, some rows are masked, some advantages are
    0; the last row's target is the last column. Phantom columns of the weight are huge, so that one
    that slips into a softmax is seen.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    x = normal(rows, hidden)
    weight = 3 * normal(padded, hidden) / hidden**0.5
    weight[vocab:] = 1e3
    probability = (x @ weight[:vocab].T).softmax(dim=1)
    targets = torch.multinomial(probability, 1, generator=rng)[:, 0]
    targets[-1] = vocab - 1
    logp = probability.gather(1, targets[:, None])[:, 0].log()
    advantages = normal(rows)
    advantages[::5] = 0.0
    return {
        "hidden": x,
        "weight": weight,
        "targets": targets,
        "old_logp": logp + 0.15 * normal(rows),
        "advantages": advantages,
        "mask": torch.rand(rows, generator=rng) < 0.8,
        "rollout_logp": logp + 0.1 * normal(rows),
        "reference_logp": logp + 0.2 * normal(rows),
        "sequence_index": torch.arange(rows) // 7,
        "vocab": vocab,
        "denominator": 7.0,
    }


def with_options(data: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The problem under one entry of FAMILY."""
    data = {**data, **options}
    if data.pop("on_policy", False):
        data["old_logp"] = None
    if data.pop("row_temperature", False):
        data["temperature"] = 0.6 + 0.05 * (torch.arange(len(data["targets"])) % 9)
    return data


def taken(data: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The entries of a problem that are fields of a typed input."""
    return {f.name: data[f.name] for f in dataclasses.fields(kind) if f.name in data}


def call_hidden(function: Callable[..., Any], data: dict[str, Any]) -> Any:
    """(loss, report) of a K1 implementation; what is no field of an input is an option of it."""
    inputs = taken(data, OutputHead), taken(data, LossRows)
    fields = {"loss"}.union(*inputs)
    more = {name: value for name, value in data.items() if name not in fields}
    loss = data.get("loss", PolicyLoss())
    return function(OutputHead(**inputs[0]), LossRows(**inputs[1]), loss, **more)


def logprobs(function: Callable[..., Any], data: dict[str, Any]) -> Any:
    """(logp, entropy) of a K3 implementation."""
    return function(OutputHead(**taken(data, OutputHead)), data["targets"])


def from_hidden(
    function: Callable[..., Any], data: dict[str, Any], upstream: float = 1.0
) -> dict[str, Any]:
    """loss, report and gradients of a K1 implementation."""
    leaves = {n: data[n].detach().clone().requires_grad_() for n in ("hidden", "weight")}
    loss, report = call_hidden(function, {**data, **leaves})
    (loss * upstream).backward()
    grads = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
    return {"loss": loss.detach(), "report": report, "metrics": report.metrics, **grads}


def from_logits(function: Callable[..., Any], data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """loss, report and gradient of a K2 implementation on the problem's logits."""
    logits = data["logits"] if "logits" in data else data["hidden"] @ data["weight"].T
    leaf = logits.detach().clone().requires_grad_()
    output = OutputLogits(**{**taken(data, OutputLogits), "logits": leaf})
    rows = LossRows(**taken(data, LossRows))
    loss, report = function(output, rows, data.get("loss", PolicyLoss()), **more)
    loss.backward()
    grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return {
        "loss": loss.detach(), "report": report, "metrics": report.metrics, "logits": grad
    }  # fmt: skip


def frobenius(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative Frobenius error; absolute where `want` is 0."""
    norm = float(want.double().norm())
    return float((got.double() - want.double()).norm()) / (norm or 1.0)


def assert_hidden(got: dict[str, Any], want: dict[str, Any], tolerance: float = 3e-6) -> None:
    """float32 arithmetic: loss to 3e-6 of its size (at least 1), gradients relative Frobenius."""
    size = max(1.0, abs(float(want["loss"])))
    assert abs(float(got["loss"]) - float(want["loss"])) <= tolerance * size
    for name in ("hidden", "weight"):
        assert frobenius(got[name], want[name]) <= tolerance, name


def assert_metrics(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Every number of the reference, to 1e-5 of its size (sums of float32 log-probs)."""
    for name, value in want.items():
        size = max(1.0, abs(float(value)))
        assert abs(float(got[name]) - float(value)) <= 1e-5 * size, name


@contextmanager
def interpreted(on: bool) -> Iterator[None]:
    """Switch the CPU back end; kernels were decorated for the interpreter when first imported."""
    before = os.environ.get("TRITON_INTERPRET", "")
    os.environ["TRITON_INTERPRET"] = "1" if on else "0"
    try:
        yield
    finally:
        os.environ["TRITON_INTERPRET"] = before


def sharded(
    size: int, case: dict[str, Any], on: bool, sequence_parallel: bool, shapes: dict[str, int]
) -> dict[str, Any] | None:
    """K1, K2 and K3 on the first `size` ranks of the world, gathered; None on the others.

    Hidden gradients of sequence-parallel ranks and weight gradients are put together here.
    """
    groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 4) if n <= dist.get_world_size()}
    if dist.get_rank() >= size:
        return None
    group = groups[size]
    whole = with_options(problem(**shapes), case)
    width = whole["weight"].shape[0] // size
    rank = dist.get_rank(group)
    columns = slice(rank * width, (rank + 1) * width)
    part = {**whole, "weight": whole["weight"][columns], "group": group}
    if sequence_parallel:
        share = whole["hidden"].shape[0] // size
        part["hidden"] = whole["hidden"][rank * share : (rank + 1) * share]
        part["sequence_parallel"] = True
    # Small chunks, so that several are in flight.
    with interpreted(on):
        got = from_hidden(kernels.linear_policy_loss, {**part, "memory_gib": 12e3 / 2**30})
        logp, entropy = logprobs(kernels.token_logprob, part)
        logits = (whole["hidden"] @ whole["weight"].T)[:, columns].contiguous()
        from_z = from_logits(kernels.policy_loss, {**part, "logits": logits})
    assert got["report"].backend == ("interpreter" if on else "torch")
    return {
        "loss": got["loss"],
        "hidden": _all(got["hidden"], group) if sequence_parallel else got["hidden"],
        "weight": _all(got["weight"], group),
        "logits": _all(from_z["logits"].T.contiguous(), group).T,
        "logits_loss": from_z["loss"],
        "logp": logp,
        "entropy": entropy,
    }


def _all(part: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts)


def interpreter_case(
    shapes: dict[str, int], options: dict[str, Any], change: str = "", first_gemm: str = "fused"
) -> dict[str, Any]:
    """K1, K2 and K3 through the interpreter with the float64 reference's answer beside them."""
    data = with_options(problem(**shapes), options)
    changed(data, change)
    if data.get("soft_cap"):
        first_gemm = "auto"  # "fused" is refused
    with interpreted(True):
        one = from_hidden(
            kernels.linear_policy_loss, {**data, "first_gemm": first_gemm}, upstream=2.0
        )
        two = from_logits(kernels.policy_loss, data)
        three = logprobs(kernels.token_logprob, data)
    assert one["report"].backend == two["report"].backend == "interpreter"
    for name in ("hidden", "weight"):
        one[name] = one[name] / 2
    return {"hidden": one, "logits": two, "logp": three}


def changed(data: dict[str, Any], change: str) -> None:
    """Edge cases, by name."""
    if change == "no advantage":
        data["advantages"] = torch.zeros_like(data["advantages"])
    elif change == "all masked":
        data["mask"] = torch.zeros_like(data["mask"])
    elif change == "ratio 100":
        # Rows whose anchor is 100 nats off, both ways, among ordinary ones. Upwards only a negative
        # advantage has a gradient, downwards only a positive one (clipping).
        data["mask"][:4] = True
        data["old_logp"][1] -= 100.0
        data["advantages"][1] = -1e-40
        data["old_logp"][2] += 100.0
        data["advantages"][2] = 1.0
        data["old_logp"][3] += 100.0
        data["advantages"][3] = -1.0
    elif change == "logits -200":
        direction = data["hidden"].mean(dim=0) + 1.0
        data["hidden"] = data["hidden"] * 0.05 + direction
        weight = data["weight"]
        weight[: data["vocab"]] -= 200.0 * direction / direction.square().sum()
        logits = data["hidden"] @ weight[: data["vocab"]].T
        assert -260 < float(logits.mean()) < -150
        logp = logits.log_softmax(dim=1).gather(1, data["targets"][:, None])[:, 0]
        data["old_logp"] = logp + 0.1
    elif change:
        raise ValueError(change)


def float64_answers(
    shapes: dict[str, int], options: dict[str, Any], change: str = ""
) -> dict[str, Any]:
    """What `interpreter_case` and `sharded` must give."""
    data = with_options(problem(**shapes), options)
    changed(data, change)
    double = {**data, "hidden": data["hidden"].double(), "weight": data["weight"].double()}
    single = {key: data[key] for key in ("hidden", "weight")}
    logits = (single["hidden"] @ single["weight"].T).double()
    return {
        "hidden": from_hidden(reference.linear_policy_loss, double),
        "logits": from_logits(reference.policy_loss, {**double, "logits": logits}),
        "logp": logprobs(reference.token_logprob, double),
    }
