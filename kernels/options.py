"""Options of the token loss: what every kernel and reference takes, and a run's `[loss]` section.

Imports no torch, so that the configuration can be read without it.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """The token-level policy loss.

    Per token, with r = p_policy / p_old, the objective gives a policy term from r and the
    advantage; the importance options weigh or mask that term; KL and entropy terms are added.
    With one optimizer step per batch of rollouts (algorithm.minibatches = 1) r is exactly 1, so
    clipping and the choice of objective or ratio change nothing.

    Example: PolicyLoss(clip_high=0.28) is the clip-higher of DAPO.

    Raises:
        ValueError: an option is out of range or has no effect beside the others. The message
            names it as PolicyLoss.option, with its value and what is allowed.
    """

    clip_low: float = 0.2
    """Lower clip of the PPO ratio: a token with a negative advantage stops contributing gradient
    once its ratio is below 1 - clip_low. In [0, 1)."""
    clip_high: float = 0.28
    """Upper clip of the PPO ratio: a token with a positive advantage stops contributing gradient
    once its ratio is above 1 + clip_high. Above clip_low it is the clip-higher of DAPO (arXiv
    2503.14476), which leaves unlikely tokens more room to grow."""
    dual_clip: float = 0.0
    """Dual clip (arXiv 1912.09729): bounds the policy term of a token with a negative advantage A
    by dual_clip * |A|, however large its ratio. Must be above 1, and needs objective = "clip". 0
    turns it off."""
    tis_clip: float = 0.0
    """Truncated importance sampling (TIS): multiplies the policy term of each token by
    min(p_trainer / p_sampler, tis_clip), which corrects for off-policy or asynchronous rollouts and
    for numerical differences between the sampler and the trainer. 2 is a usual value; 0 turns it
    off."""
    kl_coef: float = 0.0
    """Coefficient of the KL divergence from the reference policy, which is the model at the start
    of the run. Above 0 a second, frozen model is held in memory. 0 turns the term off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimator of the KL divergence from samples. As a loss term only k2 has the
    gradient of the reverse KL in expectation over the policy's own samples: the gradient of k1 is
    zero, that of k3 is the gradient of KL(reference || policy)."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus, which rewards a spread-out next-token distribution. 0
    turns it off."""
    objective: Literal["clip", "reinforce", "cispo"] = "clip"
    """What the policy term is. "clip" is the clipped ratio of PPO and GRPO. "reinforce" is the
    ratio without any clip, which is REINFORCE where the ratio is 1. "cispo" (arXiv 2506.13585) is
    -clip(r, 1 - clip_low, 1 + clip_high) * A * logp with no gradient through the clipped ratio, so
    that no token loses its gradient."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token has its own ratio, or every token of a response carries the geometric
    mean of the token ratios, as in GSPO (arXiv 2507.18071). The loss still sums over tokens;
    GSPO's mean over sequences needs advantages divided by the response's length. "sequence" needs
    whole responses on a rank, so it is refused with context parallelism."""
    importance_min: float = 0.0
    """Masks the policy term of a token whose p_trainer / p_sampler is below this. 0 turns the
    lower bound off."""
    importance_max: float = 0.0
    """Masks the policy term of a token whose p_trainer / p_sampler is above this (tis_clip
    truncates the weight instead). Must be above importance_min. 0 turns the upper bound off."""

    def __post_init__(self) -> None:
        names = ("clip_low", "clip_high", "tis_clip", "importance_min", "importance_max")
        for name in (*names, "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"PolicyLoss.{name} must be finite and 0 or more, got {value}.")
        if self.clip_low >= 1:
            raise ValueError(f"PolicyLoss.clip_low must be below 1, got {self.clip_low}.")
        if self.dual_clip != 0 and not 1 < self.dual_clip < math.inf:
            raise ValueError(
                f"PolicyLoss.dual_clip must be 0 (off) or above 1, got {self.dual_clip}."
            )
        if self.importance_max and self.importance_max <= self.importance_min:
            raise ValueError(
                f"PolicyLoss.importance_max must be 0 (off) or above importance_min = "
                f"{self.importance_min}, got {self.importance_max}."
            )
        hints = typing.get_type_hints(type(self))
        for name in ("kl_estimator", "objective", "ratio"):
            known, value = typing.get_args(hints[name]), getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"PolicyLoss.{name} must be {', '.join(known[:-1])} or {known[-1]}, "
                    f"got {value!r}."
                )
        if self.dual_clip and self.objective != "clip":
            raise ValueError(
                f"PolicyLoss.dual_clip has no effect with objective = {self.objective!r}; set "
                "dual_clip to 0 or objective to 'clip'."
            )

    @property
    def uses_importance(self) -> bool:
        """Whether the policy term is weighted or masked by p_trainer / p_sampler."""
        return bool(self.tis_clip or self.importance_min or self.importance_max)

    @property
    def every_masked_row(self) -> bool:
        """Whether rows with a zero advantage still carry loss or gradient."""
        return bool(self.kl_coef or self.entropy_coef)


DEFAULT_LOSS = PolicyLoss()
"""What a kernel computes when it is given no options."""
