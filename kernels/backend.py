"""Which implementation runs, and the row mathematics behind one name."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from passk_fast.kernels.options import PolicyLoss
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


def row_slopes(
    logp: Tensor,
    entropy: Tensor,
    *,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    rollout_logp: Tensor | None,
    reference_logp: Tensor | None,
    sequence_index: Tensor | None,
    denominator: float,
    loss: PolicyLoss,
    backend: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(c = dLoss/dlogp, float64 [T]; metrics of `policy_loss_from_logprob`).

    Sequence-level ratios take torch on every backend: they are sums over sequences of few numbers.
    """
    if backend != "torch" and loss.ratio == "token":
        from passk_fast.kernels.triton_rows import row_terms

        scale = torch.full((1,), denominator, dtype=torch.float64, device=logp.device)
        return row_terms(
            logp,
            entropy,
            old_logp=old_logp,
            advantages=advantages,
            mask=mask,
            rollout_logp=rollout_logp,
            reference_logp=reference_logp,
            denominator=scale,
            loss=loss,
        )
    with torch.enable_grad():
        leaf = logp.detach().double().requires_grad_()
        value, metrics = policy_loss_from_logprob(
            leaf,
            entropy.detach(),
            old_logp=leaf.detach() if old_logp is None else old_logp,
            rollout_logp=rollout_logp,
            reference_logp=reference_logp,
            advantages=advantages,
            mask=mask,
            denominator=denominator,
            loss=loss,
            sequence_index=sequence_index,
        )
        (slope,) = torch.autograd.grad(value, leaf)
    return slope, metrics
