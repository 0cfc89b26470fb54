"""Causal attention over packed segments, for Megatron's local layer spec.

One row of T tokens holds all segments of a micro-batch; `cu_seqlens` marks their borders. With
shared prompts a response segment sees the keys and values of its prompt's segment before its own,
as if the prompt stood in front of it. With context parallelism a rank holds a part of the row and
gathers the keys and values of the others.
"""

from __future__ import annotations

from typing import Protocol

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
from passk_fast.actor.padded import Parts, key_parts, padded_attention
from passk_fast.actor.rotary import Rotate
from passk_fast.actor.scores import Scores, attend_varlen
from passk_fast.data.types import PackedBatch, RoutedRows


class ExpertChoices(Protocol):
    """Experts that sampling chose, for routers that replay them or compare with them."""

    def choose(self, layer: int, scores_tE: Tensor, own_tK: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [t, K], experts int64 [t, K]) that take the place of `own_tK`."""


class PackedParams(PackedSeqParams):
    """Megatron's packed-sequence parameters, and what our own layers need in addition."""

    positions_T: Int[Tensor, " T"]
    parts: Parts | None
    """Of padded attention."""
    kv_rows: Int[Tensor, " Tk"] | None
    """Shared prompts and context parallelism: the packed row of every key in `cu_seqlens_kv`."""
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
    part = batch.context
    kv_rows, cu_kv, longest_kv = None, batch.cu_seqlens, batch.max_seqlen
    if part is not None:
        kv_rows, cu_kv, longest_kv = part.kv_rows, part.cu_seqlens_kv, part.max_seqlen_kv
    elif batch.prefix_B is not None:
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
    params.parts = key_parts(batch.cu_seqlens, cu_kv, kv_rows) if padded else None
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


def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, params: PackedParams, scores: Scores
) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] by a varlen kernel."""
    borders = (params.cu_seqlens_q, params.cu_seqlens_kv)
    longest = (int(params.max_seqlen_q), int(params.max_seqlen_kv))
    if params.kv_rows is not None:
        k, v = k[params.kv_rows], v[params.kv_rows]
    return attend_varlen(q, k, v, borders, longest, scores)


class PackedAttention(MegatronModule):
    """Rotary embedding and core attention over packed segments."""

    inv_freq: Tensor
    """Rotary frequencies [d / 2]; the model's builder sets them."""

    amplitude: float = 1.0
    """Cosine and sine are multiplied by it; the builder sets it."""
    layer: int
    """Index in the whole model."""
    scores: Scores
    """The model's builder may set other ones than the plain."""

    def __init__(
        self, config: TransformerConfig, layer_number: int = 1, *args: object, **kwargs: object
    ) -> None:
        super().__init__(config)
        self.layer = layer_number - 1
        self.scores = Scores()

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
        if params.parts is not None:
            out = padded_attention(q, k, v, params.parts, self.scores)
        else:
            out = _varlen_attention(q, k, v, params, self.scores)
        return out.reshape(q.shape[0], 1, -1)
