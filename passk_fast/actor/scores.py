"""Attention by scores: softmax(cap tanh(scale q k / cap)) v, over a window of keys or all of them.

Padded, or by varlen kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from passk_fast.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How the products of queries and keys become the softmax's input, and which of them do."""

    scale: float | None = None
    """What they are multiplied by; None: head_dim ** -0.5."""
    soft_cap: float = 0.0
    """Scores s become soft_cap tanh(s / soft_cap), after the scale (Gemma 2); 0 is off."""

    window: int = 0
    """A query sees itself and the window - 1 keys before it; 0: all keys before it."""

    def check(self, device: str, dtype: torch.dtype) -> None:
        """ConfigError where the kernel that would run on `device` has no soft cap.

        torch's varlen kernel has none, flash-attn from 2.6 on has one. Padded attention, on a CPU
        and in float32, computes it by itself.
        """
        if not self.soft_cap or device != "cuda" or dtype == torch.float32:
            return
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError:
            found = False
        else:
            found = "softcap" in inspect.signature(flash_attn_varlen_func).parameters
        if not found:
            raise ConfigError(
                f"model: attn_logit_softcapping = {self.soft_cap} on a GPU in bfloat16 needs "
                "flash-attn 2.6 or newer (torch's varlen kernel has no soft cap), which is not "
                "installed. Install it, or set model.dtype = 'float32', which pads."
            )


def attend(
    q: Tensor, k: Tensor, v: Tensor, scores: Scores, visible: Tensor | None = None
) -> Tensor:
    """Attention of q [B, a, heads, d] to k, v [B, b, kv_heads, d]; [B * a, heads, d].

    Causal and within the window, unless the keys that each query sees are given: bool
    [B or 1, 1, a, b].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if visible is None and 0 < scores.window < q.shape[2]:
        visible = _band(q.shape[2], scores.window, q.device)[None, None]
    if scores.soft_cap:
        out = _capped(q, k, v, scores, visible)
    else:
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            is_causal=visible is None,
            scale=scores.scale,
            enable_gqa=True,
        )
    return out.transpose(1, 2).flatten(0, 1)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool [a, a]: the keys at and before each query, at most `window` of them."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal.triu(1 - window)


def _capped(q: Tensor, k: Tensor, v: Tensor, scores: Scores, visible: Tensor | None) -> Tensor:
    """The same of q [B, heads, a, d] and k, v [B, kv_heads, b, d], which SDPA cannot cap.

    Scores are float32: bfloat16 would round one of 50 by up to 0.1.
    """
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, kv_heads, heads / kv_heads, a, d]
    products = grouped.float() @ k.float().transpose(-1, -2).unsqueeze(2)
    capped = (products * (scale / scores.soft_cap)).tanh() * scores.soft_cap
    length = q.shape[2]
    visible = _band(length, length, q.device) if visible is None else visible.unsqueeze(2)
    weights = capped.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    out: Tensor = weights.to(v.dtype) @ v.unsqueeze(2)
    return out.flatten(1, 2)


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    borders: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scores: Scores,
) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] by flash-attn, or torch's varlen kernel.

    `borders` (int32 [B + 1]) and `longest` are of queries and keys. Both kernels align the causal
    mask to the last key, which is what a response behind its prompt needs.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        # A plan counts on meta tensors what costs the same with a soft cap.
        assert not scores.soft_cap or q.device.type == "meta", "Scores.check refuses it"
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        # torch 2.11 has is_causal, later versions have window_size.
        windowed = "window_size" in inspect.signature(varlen_attn).parameters
        before = scores.window - 1 if scores.window else -1
        assert windowed or not scores.window, "Scores.check refuses it"
        causal = {"window_size": (before, 0)} if windowed else {"is_causal": True}
        run = cast(Callable[..., Tensor], varlen_attn)
        return run(q, k, v, *borders, *longest, scale=scores.scale, **causal)
    more: dict[str, object] = {"softcap": scores.soft_cap} if scores.soft_cap else {}
    if scores.window:
        more["window_size"] = (scores.window - 1, 0)
    out: Tensor = flash_attn_varlen_func(
        q, k, v, *borders, *longest, causal=True, softmax_scale=scores.scale, **more
    )
    return out
