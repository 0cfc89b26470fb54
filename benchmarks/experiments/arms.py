"""The arms of the study: one algorithm each, everything else equal.

All arms have the same warm-started model, prompts, prompt order, rollouts, optimizer steps,
learning rate (but for the arms that say so) and evaluation; runs differ in arm and seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from passk_fast.advantage import eta, table
from passk_fast.config import (
    AlgorithmConfig,
    OptimConfig,
    PolicyLoss,
    RunConfig,
    ScheduleConfig,
)
from passk_fast.config.file import load_config

CONFIG = Path(__file__).with_name("study.toml")
SEEDS = (0, 1, 2)
EXTRA = ("passk_k8_lr", "grpo_lr", "noise30", "no_easy")


LOSSES = {"entropy": {"entropy_coef": 3e-3}}
"""Options of the loss section by arm."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the tables. `question` names the table that it stands in."""

    name: str
    title: str
    questions: tuple[str, ...]
    algorithm: dict[str, Any]
    loss: dict[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0
    extra: bool = False
    """Runs after all others: the first to be missing where time is short."""

    def config(self, base: RunConfig, seed: int) -> RunConfig:
        """The run of this arm with one seed: data, model and evaluation are those of `base`."""
        lr = base.optim.lr * self.lr_factor
        optim: OptimConfig = replace(base.optim, lr=lr)
        algorithm: AlgorithmConfig = replace(base.algorithm, **self.algorithm)
        loss: PolicyLoss = replace(base.loss, **self.loss)
        return replace(base, seed=seed, algorithm=algorithm, loss=loss, optim=optim)


def base_config() -> RunConfig:
    """What all arms share."""
    return load_config(CONFIG)


def _peak(estimator: str, n: int, k: int) -> float:
    return float(eta(table(estimator, n, k)).max())


def arms(base: RunConfig) -> list[Arm]:
    """All arms. k is the base's where an arm does not say otherwise."""
    n, k, half = base.algorithm.num_rollouts, base.algorithm.k, base.steps // 2
    passk = {"estimator": "passk", "k": k}
    grpo = {"estimator": "grpo", "k": 1}
    ratio = _peak("passk", n, k) / _peak("grpo", n, 1)
    wide = _peak("passk", n, k) / _peak("passk", n, 2 * k)

    def two(first: tuple[str, int], then: tuple[str, int], **options: Any) -> dict[str, Any]:
        schedule = ScheduleConfig(
            kind="phases",
            estimators=(first[0], then[0]),
            ks=(first[1], then[1]),
            steps=(half, 0),
            **options,
        )
        return {"estimator": first[0], "k": first[1], "schedule": schedule}

    adaptive = ScheduleConfig(kind="adaptive", estimators=("grpo", "passk"), ks=(1, k))
    found = [
        ("grpo", "Pass@1 (GRPO)", "sampling control k then baseline pkpo mix", grpo, 1.0),
        ("passk", f"Pass@{k} analytic", "sampling control k then baseline mix pkpo", passk, 1.0),
        ("full", f"Pass@{k} full sampling", "sampling", {**passk, "estimator": "passk_full"}, 1.0),
        (
            "bootstrap",
            f"Pass@{k} bootstrap",
            "sampling",
            {**passk, "estimator": "passk_bootstrap"},
            1.0,
        ),
        (
            "grpo_norm",
            f"GRPO, batches scaled to the size of Pass@{k}'s",
            "control",
            {**grpo, "match_norm": "passk", "match_norm_k": k},
            1.0,
        ),
        ("grpo_lr", f"GRPO, lr x {ratio:.2f} (ratio of peak eta)", "control", grpo, ratio),
        ("passk_k2", "Pass@2 analytic", "k", {**passk, "k": 2}, 1.0),
        ("passk_k8", "Pass@8 analytic", "k", {**passk, "k": 8}, 1.0),
        ("passk_k8_lr", f"Pass@8 analytic, lr x {wide:.2f}", "k", {**passk, "k": 8}, wide),
        ("then", f"Pass@{k}, then Pass@1", "then", two(("passk", k), ("grpo", 1)), 1.0),
        (
            "exceeding",
            f"Exceeding Pass@{k}",
            "mix",
            {**passk, "estimator": "passk_exceeding"},
            1.0,
        ),
        ("combination", "Combination", "mix", {**passk, "estimator": "passk_combination"}, 1.0),
        ("adaptive", "Adaptive by entropy", "mix", {**passk, "schedule": adaptive}, 1.0),
        (
            "no_easy",
            "Pass@1 without easy prompts",
            "mix",
            {**grpo, "estimator": "pass1_no_easy"},
            1.0,
        ),
        ("noise10", "Pass@1, 10 % noise rewards", "baseline", {**grpo, "flip_negatives": 0.1}, 1.0),
        ("noise30", "Pass@1, 30 % noise rewards", "baseline", {**grpo, "flip_negatives": 0.3}, 1.0),
        ("entropy", "Pass@1, entropy bonus 0.003", "baseline", grpo, 1.0),
        (
            "pkpo_k8",
            "PKPO (sloo_minus_one), k = 8",
            "pkpo",
            {"estimator": "pkpo_sloo_minus_one", "k": 8},
            1.0,
        ),
        (
            "pkpo_anneal",
            "PKPO, k = 8 then RLOO (k = 1)",
            "pkpo",
            two(("pkpo_sloo_minus_one", 8), ("rloo", 1)),
            1.0,
        ),
        ("maxrl", "MaxRL", "pkpo", {"estimator": "maxrl", "k": 1}, 1.0),
    ]
    return [
        Arm(
            name=name,
            title=title,
            questions=tuple(q.split()),
            algorithm=algorithm,
            loss=LOSSES.get(name, {}),
            lr_factor=factor,
            extra=name in EXTRA,
        )
        for name, title, q, algorithm, factor in found
    ]
