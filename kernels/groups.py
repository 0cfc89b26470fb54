"""K0 `group_advantage`: from verdicts to advantages by one table look-up per group.

With c the number of correct responses to a prompt, A_i = table[c, correct_i]; a group is
informative where any of its advantages is non-zero. Every un-sampled binary estimator is such a
table (passk_fast/advantage/table.py makes them in float64). One program per group, an integer
count, no host wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passk_fast.kernels.backend import pick_backend
from passk_fast.kernels.checks import check_group
from passk_fast.kernels.shapes import Bool, Float


def group_advantage(
    correct: Bool[Tensor, "P N"], table: Float[Tensor, "counts 2"]
) -> tuple[Float[Tensor, "P N"], Bool[Tensor, " P"]]:
    """Advantages, float32, and which groups are informative.

    Args:
        correct: bool [P, N].
        table: float32 or float64 [N + 1, 2]: row c correct of N, column 0 wrong, 1 correct.

    An advantage too small for float32 is held at the smallest normal one, so that a group that the
    table calls informative is informative. Example: N = 2, table [[0, 0], [-1, 1], [0, 0]], correct
    [[1, 0], [1, 1]] give [[1, -1], [0, 0]] and [True, False].

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or N and table disagree.
    """
    check_group(correct, table)
    prompts, rollouts = correct.shape
    # Entries are held above float32's subnormals here, once, on N + 1 rows.
    smallest = torch.finfo(torch.float32).tiny
    tiny = (table != 0) & (table.abs() < smallest)
    table32 = torch.where(tiny, torch.copysign(torch.full_like(table, smallest), table), table)
    table32 = table32.float().contiguous()
    if pick_backend(table32) == "torch":
        rows = table32[correct.sum(dim=1)]
        advantage = torch.where(correct, rows[:, 1:], rows[:, :1])
        return advantage, (advantage != 0).any(dim=1)
    from passk_fast.kernels.triton.groups import group_kernel

    advantage = torch.empty(correct.shape, dtype=torch.float32, device=correct.device)
    informative = torch.empty(prompts, dtype=torch.bool, device=correct.device)
    if prompts:
        group_kernel[(prompts,)](
            correct, table32, advantage, informative, rollouts, correct.stride(0),
            correct.stride(1), BLOCK=max(1 << (rollouts - 1).bit_length(), 2), num_warps=1,
        )  # fmt: skip
    return advantage, informative
