"""Which implementation runs, and the row mathematics behind one name."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from passk_fast.kernels.loss_rows import LossRows
from passk_fast.kernels.token_loss import policy_loss_from_logprob


def pick_backend(tensor: Tensor) -> str:
    """ "triton" on a GPU, "interpreter" on the CPU under TRITON_INTERPRET=1, else "torch".

    float64 tensors and machines without Triton take torch.
    """
    if importlib.util.find_spec("triton") is None or tensor.dtype == torch.float64:
        return "torch"
    if tensor.device.type == "cuda":
        return "triton"
    return "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "torch"


def torch_loss(logp: Tensor, entropy: Tensor, rows: LossRows) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss_from_logprob`; without old_logp every ratio is 1."""
    old_logp = logp.detach() if rows.old_logp is None else rows.old_logp
    return policy_loss_from_logprob(logp, entropy, **{**vars(rows), "old_logp": old_logp})


def row_slopes(
    logp: Tensor, entropy: Tensor, rows: LossRows, backend: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """(c = dLoss/dlogp, float64 [T]; metrics of `policy_loss_from_logprob`).

    Sequence-level ratios take torch on every backend: they are sums over sequences of few numbers.
    """
    if backend != "torch" and rows.loss.ratio == "token":
        from passk_fast.kernels.triton.rows import row_terms

        return row_terms(logp, entropy, rows)
    with torch.enable_grad():
        leaf = logp.detach().double().requires_grad_()
        value, metrics = torch_loss(leaf, entropy.detach(), rows)
        (slope,) = torch.autograd.grad(value, leaf)
    return slope, metrics
