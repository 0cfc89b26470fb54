"""Gradients that were made in the forward pass, handed to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from passk_fast.kernels.shapes import Float


class _Attach(torch.autograd.Function):
    """Identity on the loss; backward multiplies the ready gradients by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        grads: list[Tensor | None],
        main_grad: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.grads, ctx.main_grad = grads, main_grad
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "The loss's gradients were made in its forward pass and handed out by the first "
                "backward; a second backward through the same loss is not possible."
            )
        grads, ctx.grads = ctx.grads, None
        if ctx.main_grad is not None:  # the last input's gradient goes to the caller's buffer
            ctx.main_grad.addcmul_(grads[-1], upstream)
            grads = [*grads[:-1], None]
        scaled = [None if g is None else _scale(g, upstream) for g in grads]
        out = [None if g is None else g.to(t) for g, t in zip(scaled, ctx.dtypes, strict=True)]
        return None, None, None, *out


def _scale(grad: Tensor, upstream: Tensor) -> Tensor:
    """grad * upstream in place; on a GPU memory is not touched where upstream is exactly 1."""
    if grad.device.type == "cpu" or not grad.is_contiguous():
        return grad.mul_(upstream)
    from passk_fast.kernels.triton.logits import rescale_kernel

    block = 4096
    grid = (max(1, -(-grad.numel() // block)),)
    rescale_kernel[grid](grad, upstream, grad.numel(), BLOCK=block)
    return grad


_apply: Callable[..., Tensor] = _Attach.apply


def attach(
    loss: Float[Tensor, ""],
    inputs: tuple[Tensor, ...],
    grads: list[Tensor | None],
    main_grad: Tensor | None = None,
) -> Float[Tensor, ""]:
    """`loss` as a scalar whose backward gives `inputs` the ready `grads` (once, then frees them).

    With `main_grad` the last input's gradient is added to that float32 buffer and not returned.
    """
    return _apply(loss, grads, main_grad, *inputs)
