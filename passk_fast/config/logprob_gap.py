"""When the sampler's log-probs are too far from the trainer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passk_fast.config.checks import require, require_finite, require_not_negative, require_positive

_LARGEST = {("float32", "cpu"): 1e-4, ("float32", "cuda"): 1e-2}
_LARGEST_BF16 = 0.5


@dataclass(frozen=True, kw_only=True)
class LogprobGapConfig:
    """Bounds on |log-prob of the sampler - log-prob of the trainer| over the trained tokens of a
    step, in nats. Every step whose weights sampled its batch is checked (docs/operations.md)."""

    ends_run: Literal["auto", "max", "mean", "never"] = "auto"
    """What makes a step a bad one: "max" is a largest gap above max; "mean" a mean above mean, or a
    quantile above at_quantile, while a largest gap above max is only warned of. "auto" is "max" in
    float32 and "mean" in bfloat16, where rounding alone takes single tokens far apart. "never" only
    warns."""
    bad_steps: int = 0
    """The run ends, with exit code 30, at this many bad steps in a row; those before are warned of.
    0 takes 1 where the largest gap decides, 3 where mean and quantile do."""
    max: float = 0.0
    """Bound on the largest gap. 0 takes the default of the data type and device: 1e-4 for float32
    on a CPU, 1e-2 for float32 on a GPU, 0.5 for bfloat16."""
    mean: float = 0.1
    """Bound on the mean over tokens. Healthy runs in bfloat16 report 0.01 to 0.06."""
    quantile: float = 0.99
    """The share of tokens, over all ranks, whose gap is at most at_quantile in a good step."""
    at_quantile: float = 0.5
    """Bound on that quantile, which is known to 1.1 %."""

    def __post_init__(self) -> None:
        require_finite("logprob_gap", self)
        require_positive("logprob_gap", mean=self.mean, at_quantile=self.at_quantile)
        require_not_negative("logprob_gap", max=self.max, bad_steps=self.bad_steps)
        require(
            0 < self.quantile < 1,
            f"logprob_gap.quantile must be between 0 and 1, for example 0.99, got {self.quantile}.",
        )
        require(
            self.ends_run != "never" or not self.bad_steps,
            f"logprob_gap.bad_steps = {self.bad_steps} has no effect with logprob_gap.ends_run = "
            "'never'. Set ends_run = 'auto', 'max' or 'mean', or leave bad_steps out.",
        )

    def decides(self, dtype: str) -> Literal["max", "mean", "never"]:
        """`ends_run`, with "auto" resolved for the model's data type."""
        if self.ends_run == "auto":
            return "max" if dtype == "float32" else "mean"
        return self.ends_run

    def largest(self, dtype: str, device: str) -> float:
        """`max`, with 0 resolved for the model's data type and the device ("cpu" or "cuda")."""
        return self.max or _LARGEST.get((dtype, device), _LARGEST_BF16)

    def allowed(self, dtype: str) -> int:
        """`bad_steps`, with 0 resolved for the model's data type."""
        return self.bad_steps or (3 if self.decides(dtype) == "mean" else 1)
