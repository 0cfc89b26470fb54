"""The advantage and its schedule, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.checks import (
    require,
    require_finite,
    require_not_negative,
    require_positive,
)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the estimator and k change during a run, or between the prompts of a step."""

    kind: Literal["constant", "phases", "linear", "plateau", "adaptive", "by_accuracy"] = "constant"
    """How they change. "constant" uses algorithm.estimator and algorithm.k throughout. "phases"
    runs phases of given lengths one after another. "linear" moves k evenly to its last value.
    "plateau" begins the next phase when a metric stalls. "adaptive" gives the prompts with the
    highest entropy the first of two estimators. "by_accuracy" gives it to prompts whose share of
    correct responses, c / N, is at most tau. docs/estimators.md has examples."""
    estimators: tuple[str, ...] = ()
    """One estimator per phase, or the two that are mixed. Empty uses algorithm.estimator everywhere
    (with "adaptive" and "by_accuracy" the first one is then grpo)."""
    ks: tuple[int, ...] = ()
    """With "phases" and "plateau", one k per phase. With "linear", the last k; the first is
    algorithm.k. With "adaptive" and "by_accuracy", one k for each of the two estimators."""
    steps: tuple[int, ...] = ()
    """With "phases", the number of steps of each phase; 0 for the last one means until the end.
    With "linear", the number of steps until k has its last value."""
    repeat: bool = False
    """With "phases", begins again with the first phase after the last one."""
    metric: Literal["reward", "pass@1", "pass@k"] = "pass@k"
    """With "plateau", the training metric that is watched."""
    patience: int = 50
    """With "plateau", the number of steps without a new best value before the next phase begins."""
    min_delta: float = 0.0
    """With "plateau", how much a value must exceed the best one to count as a new best."""
    share: float = 0.5
    """With "adaptive", the share of the batch's prompts, those with the highest entropy, that take
    the first estimator."""
    tau: float = 0.5
    """With "by_accuracy", prompts whose share of correct responses, c / N, is at most this take the
    first estimator."""
    scale_lr: Literal["off", "peak"] = "off"
    """Set to "peak", the learning rate is multiplied by the largest eta of the first phase over the
    largest eta of the current one, so that a change of k keeps the size of the steps
    (docs/estimators.md)."""

    def __post_init__(self) -> None:
        section = "algorithm.schedule"
        require_finite(section, self)
        require_positive(section, patience=self.patience)
        require_not_negative(section, min_delta=self.min_delta)
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
            "metric": ("plateau",),
            "patience": ("plateau",),
            "min_delta": ("plateau",),
            "share": ("adaptive",),
            "tau": ("by_accuracy",),
        }
        for name, kinds in users.items():
            require(
                getattr(self, name) == type(self).__dataclass_fields__[name].default
                or self.kind in kinds,
                f"{section}.{name} has no effect with kind = {self.kind!r}; it belongs to "
                f"{', '.join(kinds)}.",
            )
        require(
            self.scale_lr == "off" or self.kind in ("phases", "linear", "plateau"),
            f"{section}.scale_lr has no effect with kind = {self.kind!r}, where k does not change "
            "during the run.",
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
    """The advantage of a group of responses, and how a batch becomes optimizer steps."""

    estimator: str = "passk"
    """The advantage estimator. "passk" is the analytic Pass@k advantage (Pass@k Training, arXiv
    2508.10751, Eq. 11-15); "grpo" is its k = 1 case. docs/estimators.md lists all of them."""
    num_rollouts: int = 16
    """N, the number of responses sampled per prompt (the group size of GRPO)."""
    k: int = 8
    """The k of the Pass@k objective; at most num_rollouts."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of the estimator, for example {tau = 0.5}. docs/estimators.md lists them."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the estimator and k change during the run, or between the prompts of a step."""
    match_norm: str = ""
    """For control experiments: scales the advantages of each batch so that the sum of their
    absolute values equals that of another estimator, which is named here. Empty turns it off."""
    match_norm_k: int = 1
    """The k of the estimator named by match_norm."""
    flip_negatives: float = 0.0
    """Random-reward baseline: each wrong response is rewarded with this probability. Metrics report
    the true rewards."""
    balance_coef: float = 0.0
    """Coefficient of the load-balancing loss of a mixture of experts, computed per sequence and
    averaged over the sequences of an optimizer step (docs/moe.md). 0 turns it off."""
    balance_bias_rate: float = 0.0
    """Step size of the router bias of a mixture of experts, which steers tokens to experts that get
    less than their share, without a loss term (docs/moe.md). It needs loss.tis_clip and
    bounds in [logprob_gap], because the sampler does not know the bias. 0 turns it off."""
    loss_denominator: Literal["response_tokens", "informative_tokens", "sequences"] = (
        "response_tokens"
    )
    """What the token loss, summed over one optimizer step, is divided by: all response tokens, the
    response tokens of informative groups, or the number of sequences. It is fixed before sequences
    are dropped, split or packed."""
    skip_zero_advantage: Literal["auto", "on", "off"] = "auto"
    """Leaves sequences with a zero advantage out of the update, which does not change the gradient.
    "auto" does so unless another term of the loss needs them (KL, entropy bonus, expert balancing);
    "on" makes that an error. The metrics of an update are over the sequences that remain."""
    minibatches: int = 1
    """Optimizer steps per batch of rollouts. 1 is strictly on-policy: every PPO ratio is 1. Above 1
    the later steps are off-policy, and the clips of the loss section take effect."""
    max_zero_advantage_steps: int = 100
    """Stops the run after this many steps in a row in which every group has zero advantage, so that
    there is no gradient. 0 never stops it."""
    routing_replay: Literal["off", "measure", "replay"] = "off"
    """What training does with the experts that sampling chose in a mixture of experts. "replay"
    sends every token to the same experts (R3, arXiv 2510.11370); "measure" leaves the choice to the
    trainer's router. Both report `routing_differs`, the share of tokens and layers in which the two
    choices differ (docs/routing_replay.md)."""

    def __post_init__(self) -> None:
        n, k = self.num_rollouts, self.k
        require_finite("algorithm", self)
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
        require_not_negative(
            "algorithm",
            max_zero_advantage_steps=self.max_zero_advantage_steps,
            balance_coef=self.balance_coef,
            balance_bias_rate=self.balance_bias_rate,
        )
        require(
            self.balance_bias_rate == 0 or self.routing_replay != "replay",
            "algorithm.balance_bias_rate steers a choice of experts that algorithm.routing_replay "
            "= 'replay' does not leave to the trainer. Use only one of them, or "
            "algorithm.balance_coef.",
        )

    @property
    def balances_experts(self) -> bool:
        """Whether something evens out the load of experts."""
        return self.balance_coef > 0 or self.balance_bias_rate > 0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its schedule, and what to do with bad gradients."""

    lr: float = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    lr_warmup_steps: int = 10
    """Steps of the linear learning-rate warm-up."""
    min_lr_ratio: float = 0.0
    """With schedule = "cosine", the final learning rate as a share of lr."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.95
    """Decay rate of AdamW's second moment."""
    eps: float = 1e-8
    """Epsilon of AdamW."""
    grad_clip: float = 1.0
    """Bound on the global gradient norm; larger gradients are scaled down to it. 0 turns it off."""
    max_bad_steps: int = 3
    """Stops the run after this many steps in a row with a NaN or infinite gradient; each such step
    leaves the weights unchanged."""
    spike_factor: float = 10.0
    """Warns of a gradient norm above this many times the median of the last 100 optimizer steps,
    once there were 20. 0 turns it off."""
    skip_spikes: bool = False
    """Skips the update of such a step: weights and optimizer stay as they are."""

    def __post_init__(self) -> None:
        require_finite("optim", self)
        require_positive("optim", lr=self.lr, eps=self.eps, max_bad_steps=self.max_bad_steps)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name} must be in [0, 1), got {value}.")
        require(
            0 <= self.min_lr_ratio <= 1,
            f"optim.min_lr_ratio must be in [0, 1], got {self.min_lr_ratio}.",
        )
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"optim.spike_factor must be 0 or above 1, got {self.spike_factor}.",
        )
        require(
            self.spike_factor > 0 or not self.skip_spikes,
            "optim.skip_spikes has no effect with optim.spike_factor = 0, which says what a spike "
            "is.",
        )
        require(
            self.min_lr_ratio == 0 or self.schedule == "cosine",
            f"optim.min_lr_ratio = {self.min_lr_ratio} has no effect with optim.schedule = "
            f"{self.schedule!r}; it belongs to 'cosine'.",
        )
        require_not_negative(
            "optim",
            lr_warmup_steps=self.lr_warmup_steps,
            grad_clip=self.grad_clip,
            weight_decay=self.weight_decay,
        )
