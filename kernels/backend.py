"""Which implementation runs, and the row mathematics behind one name."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from passk_fast.kernels.inputs import LossRows
from passk_fast.kernels.options import PolicyLoss
from passk_fast.kernels.token_loss import policy_loss_from_logprob

Backend = Literal["triton", "interpreter", "torch"]


def pick_backend(tensor: Tensor) -> Backend:
    """ "triton" on a GPU, "interpreter" on the CPU under TRITON_INTERPRET=1, else "torch".

    float64 tensors and machines without Triton take torch.
    """
    if importlib.util.find_spec("triton") is None or tensor.dtype == torch.float64:
        return "torch"
    if tensor.device.type == "cuda":
        return "triton"
    return "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "torch"


def row_slopes(
    logp: Tensor, entropy: Tensor, rows: LossRows, loss: PolicyLoss, backend: Backend
) -> tuple[Tensor, dict[str, Tensor]]:
    """(c = dLoss/dlogp, float64 [T]; metrics of `policy_loss_from_logprob`).

    Sequence-level ratios take torch on every backend: they are sums over sequences of few numbers.
    """
    if backend != "torch" and loss.ratio == "token":
        from passk_fast.kernels.triton.rows import row_terms

        return row_terms(logp, entropy, rows, loss)
    with torch.enable_grad():
        leaf = logp.detach().double().requires_grad_()
        value, metrics = policy_loss_from_logprob(leaf, entropy.detach(), rows, loss)
        (slope,) = torch.autograd.grad(value, leaf)
    return slope, metrics
