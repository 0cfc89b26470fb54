"""Causal attention over packed segments, for Megatron's local layer spec.

One row of T tokens holds all segments of a micro-batch; `cu_seqlens` marks their borders. With
shared prompts a response segment sees the keys and values of its prompt's segment before its own,
as if the prompt stood in front of it. With context parallelism a rank holds a part of the row and
gathers the keys and values of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from passk_fast.actor.autograd import call
from passk_fast.actor.padded_attention import Slots, attend, make_slots, padded_attention
from passk_fast.actor.rotary import Rotate
from passk_fast.data.types import PackedBatch, RoutedRows


class ExpertChoices(Protocol):
    """Experts that sampling chose, for routers that replay them or compare with them."""

    def choose(self, layer: int, scores_tE: Tensor, own_tK: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [t, K], experts int64 [t, K]) that take the place of `own_tK`."""


class PackedParams(PackedSeqParams):
    """Megatron's packed-sequence parameters, and what our own layers need in addition."""

    positions_T: Int[Tensor, " T"]
    padded: bool
    """Attention is SDPA over padded segments: on a CPU, and in float32."""
    slots: Slots | None
    """Padded attention without context parallelism."""
    kv_rows: Int[Tensor, " Tk"] | None
    """Shared prompts in varlen kernels, and context parallelism: the packed row of every key in
    `cu_seqlens_kv`."""
    context_group: dist.ProcessGroup | None
    gathered_T: Int[Tensor, " T"] | None
    """Context parallelism: a row's place among the gathered parts of all ranks."""
    routed: RoutedRows | None = None
    """For routers of a mixture of experts."""
    rotation: tuple[Tensor, Tensor] | None = None
    """Cosine [T, 1, d], its halves equal, and sine [T, 1, d / 2]: made by the first layer."""
    experts: ExpertChoices | None = None
    """Set where sampling's experts are replayed or compared with."""


def packed_params(
    batch: PackedBatch, *, thd: bool, padded: bool, context_group: dist.ProcessGroup | None = None
) -> PackedParams:
    """Parameters of one micro-batch; `thd` says that Transformer Engine's attention takes them,
    `padded` that ours pads (a CPU, or float32, which the varlen kernels do not take)."""
    kv_rows, cu_kv, longest_kv = None, batch.cu_seqlens, batch.max_seqlen
    part = batch.context
    if part is not None:
        kv_rows, cu_kv, longest_kv = part.kv_rows, part.cu_seqlens_kv, part.max_seqlen_kv
    elif batch.prefix_B is not None and not padded:
        kv_rows, cu_kv, longest_kv = _shared_keys(batch)
    params = PackedParams(
        # Only "thd" takes Megatron's per-sequence rotary path; ours is one gather for all tokens.
        qkv_format="thd" if thd else "packed",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=cu_kv,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=longest_kv,
    )
    params.positions_T = batch.positions_T
    params.routed = batch.routed
    params.kv_rows = kv_rows
    params.slots = make_slots(batch) if padded and part is None else None
    params.padded = padded
    params.context_group = context_group
    params.gathered_T = None if part is None else part.gathered_T
    return params


def _shared_keys(batch: PackedBatch) -> tuple[Tensor, Tensor, int]:
    """(rows of keys [Tk], their borders int32 [B + 1], longest): prompt before response."""
    assert batch.prefix_B is not None
    borders = batch.cu_seqlens.tolist()
    rows, lengths = [], []
    for b, prefix in enumerate(batch.prefix_B):
        own = np.arange(borders[b], borders[b + 1])
        before = np.arange(borders[prefix], borders[prefix + 1]) if prefix >= 0 else own[:0]
        rows += [before, own]
        lengths.append(len(before) + len(own))
    cu = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    device = batch.tokens_T.device
    return (
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(cu).to(device),
        max(lengths),
    )


def _rotation(
    params: PackedParams, inv_freq: Tensor, amplitude: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if params.rotation is None:
        positions = params.positions_T
        angles = positions.float()[:, None, None] * inv_freq.to(positions.device)
        cos, sin = angles.cos(), angles.sin()
        if amplitude != 1.0:
            cos, sin = cos * amplitude, sin * amplitude
        cos = cos.to(dtype)
        params.rotation = (torch.cat((cos, cos), dim=-1), sin.to(dtype))
    return params.rotation


def _gathered(x: Tensor, params: PackedParams) -> Tensor:
    """Rows [T, ...] of all context-parallel ranks in packed order, from this rank's part."""
    parts: Tensor = gather_from_sequence_parallel_region(x.contiguous(), group=params.context_group)
    return parts[params.gathered_T]


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, params: PackedParams, window: int) -> Tensor:
    """Attention of segments q [T / size, heads, d] to their own lists of keys, one padded call.

    A segment's own rows are the last of its keys.
    """
    assert params.kv_rows is not None
    cu_q, cu_k = params.cu_seqlens_q.long(), params.cu_seqlens_kv.long()
    q_lengths, k_lengths = cu_q.diff(), cu_k.diff()
    q_at = torch.arange(int(params.max_seqlen_q), device=q.device)
    k_at = torch.arange(int(params.max_seqlen_kv), device=q.device)
    q_rows = (cu_q[:-1, None] + q_at).clamp(max=len(q) - 1)
    k_rows = params.kv_rows[(cu_k[:-1, None] + k_at).clamp(max=len(params.kv_rows) - 1)]
    last = (k_lengths - q_lengths)[:, None] + q_at  # [B, a]: the last key that a query sees
    last = last.clamp(max=k_lengths[:, None] - 1)[..., None]
    visible = k_at <= last
    if window:
        visible &= k_at > last - window
    out = attend(q[q_rows], k[k_rows], v[k_rows], visible[:, None])
    return out[(q_at < q_lengths[:, None]).flatten()]


def _varlen_attention(q: Tensor, k: Tensor, v: Tensor, params: PackedParams, window: int) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] by flash-attn, or torch's varlen kernel.

    Both align the causal mask to the last key, which is what a response behind its prompt needs.
    """
    cu, cu_kv = params.cu_seqlens_q, params.cu_seqlens_kv
    longest, longest_kv = int(params.max_seqlen_q), int(params.max_seqlen_kv)
    reach = (window - 1 if window else -1, 0)  # keys to the left and to the right
    if params.kv_rows is not None:
        k, v = k[params.kv_rows], v[params.kv_rows]
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        kernel = cast(Callable[..., Tensor], varlen_attn)
        return kernel(q, k, v, cu, cu_kv, longest, longest_kv, window_size=reach)
    out: Tensor = flash_attn_varlen_func(
        q, k, v, cu, cu_kv, longest, longest_kv, causal=True, window_size=reach
    )
    return out


class PackedAttention(MegatronModule):
    """Rotary embedding and core attention over packed segments."""

    inv_freq: Tensor
    """Rotary frequencies [d / 2]; the model's builder sets them."""

    amplitude: float = 1.0
    """Cosine and sine are multiplied by it; the builder sets it."""
    window: int = 0
    """Keys that a query sees, its own included; 0: all. The builder sets it."""

    def __init__(
        self, config: TransformerConfig, layer_number: int = 1, *args: object, **kwargs: object
    ) -> None:
        super().__init__(config)
        self.layer = layer_number - 1

    def forward(
        self,
        query: Float[Tensor, "T 1 heads d"],
        key: Float[Tensor, "T 1 kv_heads d"],
        value: Float[Tensor, "T 1 kv_heads d"],
        attention_mask: Tensor | None = None,
        attn_mask_type: object = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedParams | None = None,
    ) -> Float[Tensor, "T 1 heads*d"]:
        """Attention of every query to the keys of its own segment, and of its prompt's, before it.

        On a GPU the kernels need bfloat16 or float16.
        """
        assert packed_seq_params is not None, "packed sequences are the only layout"
        params = packed_seq_params
        cos, sin = _rotation(params, self.inv_freq, self.amplitude, query.dtype)
        q, k = (call(Rotate, x.squeeze(1), cos, sin) for x in (query, key))
        v = value.squeeze(1)
        if params.gathered_T is not None:
            k, v = (_gathered(x, params) for x in (k, v))
        if params.slots is not None:
            out = padded_attention(q, k, v, params.slots, self.window)
        elif params.padded:
            out = _masked_attention(q, k, v, params, self.window)
        else:
            out = _varlen_attention(q, k, v, params, self.window)
        return out.reshape(q.shape[0], 1, -1)
