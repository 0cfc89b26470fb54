"""What the token loss reads of T rows beside their log-probs and entropies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passk_fast.kernels.checks import check_rows
from passk_fast.kernels.options import PolicyLoss
from passk_fast.kernels.token_loss import check_options


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """Vectors [T], options and denominator of one call, as `linear_policy_loss` takes them."""

    old_logp: Tensor | None
    advantages: Tensor
    mask: Tensor
    denominator: float
    loss: PolicyLoss
    rollout_logp: Tensor | None = None
    reference_logp: Tensor | None = None
    sequence_index: Tensor | None = None

    @property
    def vectors(self) -> dict[str, Tensor | None]:
        """By name, those that are None too."""
        return {
            name: value for name, value in vars(self).items() if name not in ("denominator", "loss")
        }

    def check(self, targets: Tensor, vocab: int, device: torch.device) -> None:
        """TypeError or ValueError naming the argument that is wrong or missing."""
        check_rows(targets, vocab, device=device, **self.vectors)
        check_options(
            self.loss, self.rollout_logp, self.reference_logp, self.denominator, self.sequence_index
        )

    def at(self, rows: Tensor, mask: Tensor) -> LossRows:
        """Some of the rows, with a mask of theirs."""
        taken = {n: None if value is None else value[rows] for n, value in self.vectors.items()}
        return replace(self, **{**taken, "mask": mask})
