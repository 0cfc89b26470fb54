"""The Triton kernel of K0: one program per group."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_kernel(
    correct_ptr, table_ptr, advantage_ptr, informative_ptr, rollouts, stride_p, stride_n,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """advantage[p, i] = table[count of correct[p], correct[p, i]]."""
    prompt = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    correct = tl.load(
        correct_ptr + prompt * stride_p + i * stride_n, mask=i < rollouts, other=0
    ).to(tl.int32)
    count = tl.sum(correct, 0)
    wrong_value = tl.load(table_ptr + 2 * count)
    right_value = tl.load(table_ptr + 2 * count + 1)
    advantage = tl.where(correct != 0, right_value, wrong_value)
    tl.store(advantage_ptr + prompt * rollouts + i, advantage, mask=i < rollouts)
    informative = ((count > 0) & (right_value != 0)) | ((count < rollouts) & (wrong_value != 0))
    tl.store(informative_ptr + prompt, informative)
