"""RMSNorm, packed rotary embedding and packed attention for Megatron's local layer spec.

They stand in for Transformer Engine's where it is not installed. Tokens are packed: one row of T
tokens holds all sequences of a micro-batch, `cu_seqlens` marks their borders.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """Root mean square norm; marks its weight for sequence parallelism (torch's cannot)."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **kwargs: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = config.layernorm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class PackedParams(PackedSeqParams):
    """Megatron's packed-sequence parameters plus the position of every token in its sequence."""

    positions_T: Tensor
    padded_index: tuple[Tensor, Tensor]
    """CPU path: (row, column) of every token in the [B, max_seqlen] layout."""


def packed_params(cu_seqlens: Tensor, positions_T: Tensor, max_seqlen: int, thd: bool) -> Any:
    """PackedParams for B sequences; `cu_seqlens` int32 [B + 1], `positions_T` int64 [T]."""
    params = PackedParams(
        # Only "thd" takes Megatron's per-sequence rotary path; ours is one gather for all tokens.
        qkv_format="thd" if thd else "packed",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
    params.positions_T = positions_T
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    rows = torch.repeat_interleave(
        torch.arange(len(lengths), device=cu_seqlens.device),
        lengths,
        output_size=positions_T.shape[0],
    )
    params.padded_index = (rows, positions_T)
    return params


class PackedRotary(torch.nn.Module):
    """Rotary angles of packed positions, with the frequencies Hugging Face's config defines."""

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.float(), persistent=False)

    def get_rotary_seq_len(
        self, context: object, block: object, x: object, config: object, params: PackedParams
    ) -> Tensor:
        """Megatron hands the result to `forward`: the positions themselves, int64 [T]."""
        return params.positions_T

    def forward(self, positions_T: Tensor, **kwargs: object) -> Tensor:
        """Angles [T, 1, 1, head_dim] in float32."""
        angles = positions_T.float()[:, None] * self.inv_freq.to(positions_T.device)[None, :]
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, params: PackedParams) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] through one padded SDPA call.

    Sequences are padded on the right, so the causal mask hides padding from every real query.
    """
    index = params.padded_index
    size = (len(params.cu_seqlens_q) - 1, int(params.max_seqlen_q))

    def pad(x: Tensor) -> Tensor:
        return x.new_zeros(*size, *x.shape[1:]).index_put(index, x).transpose(1, 2)

    out = F.scaled_dot_product_attention(pad(q), pad(k), pad(v), is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)[index]


def _varlen_attention(q: Tensor, k: Tensor, v: Tensor, params: PackedParams) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] by flash-attn, or torch's varlen kernel."""
    cu, longest = params.cu_seqlens_q, int(params.max_seqlen_q)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        causal = (
            {"window_size": (-1, 0)}
            if "window_size" in inspect.signature(varlen_attn).parameters
            else {"is_causal": True}  # torch 2.11
        )
        return varlen_attn(q, k, v, cu, cu, longest, longest, **causal)
    return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True)


class PackedAttention(MegatronModule):
    """Core attention over packed sequences; q [T, 1, heads, d], k and v [T, 1, kv_heads, d]."""

    def __init__(self, config: Any, *args: object, **kwargs: object) -> None:
        super().__init__(config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: object = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedParams | None = None,
    ) -> Tensor:
        """[T, 1, heads * d]. Kernels need bf16 or fp16; float32 takes the padded SDPA path."""
        assert packed_seq_params is not None, "packed sequences are the only layout"
        q, k, v = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        fused = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
        attend = _varlen_attention if fused else _padded_attention
        return attend(q, k, v, packed_seq_params).reshape(q.shape[0], 1, -1)
