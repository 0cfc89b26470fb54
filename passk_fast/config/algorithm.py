"""Advantage, its schedule, loss and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How estimator and k change during a run, or between the prompts of a step.

    phases: one after the other. linear: k moves evenly. plateau: the next phase begins when a
    metric stalls. adaptive: prompts with the highest entropy take the first estimator.
    by_accuracy: prompts with c / N <= tau take the first. docs/estimators.md has examples.
    """

    kind: Literal["constant", "phases", "linear", "plateau", "adaptive", "by_accuracy"] = "constant"
    """constant: algorithm.estimator and algorithm.k throughout."""
    estimators: tuple[str, ...] = ()
    """One a phase, or the two that are mixed; empty: algorithm.estimator everywhere (adaptive and
    by_accuracy: grpo first)."""
    ks: tuple[int, ...] = ()
    """phases, plateau: one k a phase. linear: the last k, from algorithm.k. Mixing: one k each."""
    steps: tuple[int, ...] = ()
    """phases: steps of each, 0 for the last one: to the end. linear: steps that it takes."""
    repeat: bool = False
    """phases: begin again after the last one."""
    metric: Literal["reward", "pass@1", "pass@k"] = "pass@k"
    """plateau: the training metric that is watched."""
    patience: int = 50
    """plateau: steps without a new best before the next phase begins."""
    min_delta: float = 0.0
    """plateau: a new best must be better by more than this."""
    share: float = 0.5
    """adaptive: share of the batch's prompts, by entropy from above, that take the first."""
    tau: float = 0.5
    """by_accuracy: prompts with c / N <= tau take the first."""
    scale_lr: Literal["off", "peak"] = "off"
    """peak: the learning rate is multiplied by max eta of the first phase / max eta of this one, so
    that a change of k keeps the step size."""

    def __post_init__(self) -> None:
        section = "algorithm.schedule"
        require_positive(section, patience=self.patience)
        require(self.min_delta >= 0, f"{section}.min_delta must be 0 or more.")
        for name in ("share", "tau"):
            value = getattr(self, name)
            require(0 < value < 1, f"{section}.{name} must be between 0 and 1, got {value}.")
        self._check_used(section)
        if self.kind in ("adaptive", "by_accuracy"):
            self._check_mixing(section)
        elif self.kind == "linear":
            require(
                len(self.ks) == 1 and len(self.steps) == 1 and self.steps[0] > 0,
                f"{section}: kind = 'linear' needs one last k in ks and one number of steps above "
                f"0 in steps, got ks = {list(self.ks)}, steps = {list(self.steps)}.",
            )
        elif self.kind in ("phases", "plateau"):
            self._check_phases(section)

    def _check_used(self, section: str) -> None:
        """An option that cannot take effect is an error."""
        users = {
            "estimators": ("phases", "plateau", "adaptive", "by_accuracy"),
            "ks": ("phases", "plateau", "linear", "adaptive", "by_accuracy"),
            "steps": ("phases", "linear"),
            "repeat": ("phases",),
        }
        for name, kinds in users.items():
            require(
                not getattr(self, name) or self.kind in kinds,
                f"{section}.{name} has no effect with kind = {self.kind!r}; it belongs to "
                f"{', '.join(kinds)}.",
            )
        require(
            self.scale_lr == "off" or self.kind in ("phases", "linear", "plateau"),
            f"{section}.scale_lr has no effect with kind = {self.kind!r}, where k stays.",
        )

    def _check_phases(self, section: str) -> None:
        count = len(self.ks)
        require(count >= 2, f"{section}.ks must name two phases or more, got {list(self.ks)}.")
        require(
            len(self.estimators) in (0, count),
            f"{section}.estimators must be empty or have one name for each of the {count} ks, got "
            f"{len(self.estimators)}.",
        )
        if self.kind == "plateau":
            return
        require(
            len(self.steps) == count,
            f"{section}.steps must have one number for each of the {count} ks, got "
            f"{len(self.steps)}.",
        )
        open_end = not self.repeat and self.steps[-1] == 0
        closed = self.steps[:-1] if open_end else self.steps
        require(
            all(s > 0 for s in closed),
            f"{section}.steps must be positive (0 only for a last phase without repeat), got "
            f"{list(self.steps)}: a phase of no steps is never reached.",
        )

    def _check_mixing(self, section: str) -> None:
        require(
            len(self.ks) == 2,
            f"{section}.ks must hold two ks, of the first and the second estimator, got "
            f"{list(self.ks)}.",
        )
        require(
            len(self.estimators) in (0, 2),
            f"{section}.estimators must be empty or hold two names, got {len(self.estimators)}.",
        )

    def check_reached(self, total_steps: int) -> None:
        """ConfigError when a run of `total_steps` ends before the last phase begins."""
        section = "algorithm.schedule"
        if self.kind == "phases":
            start = 0
            for i, length in enumerate(self.steps):
                require(
                    start < total_steps,
                    f"{section}.steps: phase {i + 1} of {len(self.steps)} begins at step {start}, "
                    f"but the run has steps = {total_steps}: it is never reached.",
                )
                start += length
        elif self.kind == "linear":
            require(
                self.steps[0] < total_steps,
                f"{section}.steps: the last k is reached at step {self.steps[0]}, but the run has "
                f"steps = {total_steps}: it is never reached.",
            )
        elif self.kind == "plateau":
            first = self.patience * (len(self.ks) - 1)
            require(
                first < total_steps,
                f"{section}.patience: with {len(self.ks)} phases the last one begins at step "
                f"{first} at the earliest, but the run has steps = {total_steps}: it is never "
                "reached.",
            )


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Advantage and loss. Terms beyond the clipped policy loss are off by default."""

    estimator: str = "passk"
    """The advantage estimator; docs/estimators.md lists them. passk: analytic Pass@k (arXiv
    2508.10751, Eq. 11-15); grpo is its k = 1 case."""
    num_rollouts: int = 16
    """N, responses a prompt."""
    k: int = 8
    """The k of Pass@k."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of the estimator, for example {tau = 0.5}; docs/estimators.md lists them."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How estimator and k change."""
    match_norm: str = ""
    """Control experiments: an estimator whose sum of |advantage| over the batch the advantages are
    scaled to; empty is off."""
    match_norm_k: int = 1
    """The k of match_norm."""
    flip_negatives: float = 0.0
    """Noise baseline: each wrong response is rewarded with this probability; metrics see the true
    rewards."""
    clip_low: float = 0.2
    """Lower clip of the ratio: 1 - clip_low."""
    clip_high: float = 0.28
    """Upper clip of the ratio: 1 + clip_high (clip-higher)."""
    dual_clip: float = 0.0
    """Dual clip: with a negative advantage the loss is at most dual_clip x |A|; 0 is off."""
    tis_clip: float = 0.0
    """Truncated importance sampling: weight min(p_trainer / p_rollout, cap); 0 is off."""
    kl_coef: float = 0.0
    """Coefficient of the KL to the reference model (the policy at the start); 0 is off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators of KL from samples."""
    entropy_coef: float = 0.0
    """Entropy bonus; 0 is off."""
    balance_coef: float = 0.0
    """Mixture of experts: coefficient of the load-balancing loss of each sequence, averaged over
    the sequences of an optimizer step (docs/moe.md); 0 is off."""
    balance_bias_rate: float = 0.0
    """Mixture of experts: step of the bias that steers the trainer's router to experts with less
    than their share, without a loss (docs/moe.md); 0 is off."""
    loss_denominator: Literal["response_tokens", "informative_tokens", "sequences"] = (
        "response_tokens"
    )
    """What the summed token loss of one optimizer step is divided by, fixed before packing."""
    skip_zero_advantage: Literal["auto", "on", "off"] = "auto"
    """Leave sequences with zero advantage out of the update; the gradient stays the same. auto:
    unless another term of the loss needs them. Metrics of the update are then over the rest."""
    minibatches: int = 1
    """Optimizer steps a batch of rollouts; 1 is strictly on-policy."""
    max_zero_advantage_steps: int = 100
    """Stop after this many steps in a row without one group that has a gradient; 0 never does."""
    routing_replay: Literal["off", "measure", "replay"] = "off"
    """Mixtures of experts: replay sends every token in training to the experts that sampling chose
    (R3, arXiv 2510.11370), measure leaves it the trainer's own; both report `routing_differs`, the
    share of tokens and layers where these differ (docs/routing_replay.md)."""
    max_logprob_gap: float = 0.0
    """First-step bound on max |rollout - trainer log-prob|; 0 takes the default of the dtype and
    device (float32 on CPU 1e-4, float32 on GPU 1e-2, bfloat16 0.5)."""

    def __post_init__(self) -> None:
        n, k = self.num_rollouts, self.k
        require(n >= 2, f"algorithm.num_rollouts (N) must be at least 2, got {n}.")
        require(
            1 <= k <= n, f"algorithm.k must be between 1 and algorithm.num_rollouts = {n}, got {k}."
        )
        require(
            k < n or self.estimator != "passk",
            f"algorithm.k = algorithm.num_rollouts = {n}: every analytic Pass@k advantage is zero "
            "at k = N. Take k < N.",
        )
        require(
            self.estimator != "grpo" or k == 1,
            f"algorithm.estimator = 'grpo' ignores k; set algorithm.k = 1, got {k}.",
        )
        require(
            0 <= self.flip_negatives < 1,
            f"algorithm.flip_negatives must be in [0, 1), got {self.flip_negatives}.",
        )
        require(
            bool(self.match_norm) or self.match_norm_k == 1,
            f"algorithm.match_norm_k = {self.match_norm_k} has no effect without "
            "algorithm.match_norm.",
        )
        require_positive("algorithm", minibatches=self.minibatches)
        require(
            self.max_zero_advantage_steps >= 0,
            f"algorithm.max_zero_advantage_steps must be 0 or more, got {self.max_zero_advantage_steps}.",
        )
        require(
            self.skip_zero_advantage != "on" or not self._dead_rows_count,
            "algorithm.skip_zero_advantage = 'on' with algorithm.kl_coef, entropy_coef, balance_coef or "
            "balance_bias_rate above 0: that term depends on sequences without advantage too. Take "
            "skip_zero_advantage = 'auto' or 'off'.",
        )
        self._check_balance()
        names = ("clip_low", "clip_high", "tis_clip", "kl_coef", "entropy_coef")
        for name in (*names, "balance_coef", "balance_bias_rate"):
            value = getattr(self, name)
            require(value >= 0, f"algorithm.{name} must be 0 or more, got {value}.")
        require(self.clip_low < 1, f"algorithm.clip_low must be below 1, got {self.clip_low}.")
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"algorithm.dual_clip must be 0 (off) or above 1, got {self.dual_clip}.",
        )

    def _check_balance(self) -> None:
        if self.balance_bias_rate == 0:
            return
        require(
            self.tis_clip > 0 and self.max_logprob_gap > 0,
            "algorithm.balance_bias_rate: the engine knows no bias, so it samples from another "
            "routing than the trainer's. Set algorithm.tis_clip (2 is usual), which weighs "
            "tokens for it, and algorithm.max_logprob_gap to the gap that you accept.",
        )
        require(
            self.routing_replay != "replay",
            "algorithm.balance_bias_rate steers a choice that algorithm.routing_replay = 'replay' "
            "does not leave to the trainer. Take one of them, or algorithm.balance_coef.",
        )

    @property
    def _dead_rows_count(self) -> bool:
        """A term of the update depends on sequences whose advantage is zero."""
        terms = (self.kl_coef, self.entropy_coef, self.balance_coef, self.balance_bias_rate)
        return any(term > 0 for term in terms)

    @property
    def balances_experts(self) -> bool:
        """Something evens out the load of experts."""
        return self.balance_coef > 0 or self.balance_bias_rate > 0

    @property
    def skips_zero_advantage(self) -> bool:
        """Sequences without advantage are dropped before the trainer's forward."""
        return self.skip_zero_advantage != "off" and not self._dead_rows_count


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its schedule, and what to do with bad gradients."""

    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape after warm-up."""
    lr_warmup_steps: int = 10
    """Linear warm-up steps."""
    min_lr_ratio: float = 0.0
    """Cosine: final learning rate as a share of `lr`."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Adam's first-moment decay."""
    beta2: float = 0.95
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    grad_clip: float = 1.0
    """Global gradient-norm clip; 0 is off."""
    max_bad_steps: int = 3
    """Stop after this many steps in a row with a NaN or inf gradient."""

    def __post_init__(self) -> None:
        require_positive("optim", lr=self.lr, eps=self.eps, max_bad_steps=self.max_bad_steps)
        require(self.lr_warmup_steps >= 0, "optim.lr_warmup_steps must be 0 or more.")
        for name in ("beta1", "beta2", "min_lr_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name} must be in [0, 1], got {value}.")
        require(self.grad_clip >= 0, f"optim.grad_clip must be 0 or more, got {self.grad_clip}.")
