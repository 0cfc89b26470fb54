"""Causal attention over packed segments, for Megatron's local layer spec.

One row of T tokens holds all segments of a micro-batch; `cu_seqlens` marks their borders. With
shared prompts a response segment sees the keys and values of its prompt's segment before its own,
as if the prompt stood in front of it. With context parallelism a rank holds a part of the row and
gathers the keys and values of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from passk_fast.actor.autograd import Context, call
from passk_fast.actor.scores import Scores, attend, attend_varlen
from passk_fast.data.types import PackedBatch, RoutedRows


class ExpertChoices(Protocol):
    """Experts that sampling chose, for routers that replay them or compare with them."""

    def choose(self, layer: int, scores_tE: Tensor, own_tK: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [t, K], experts int64 [t, K]) that take the place of `own_tK`."""


@dataclass(frozen=True)
class Slots:
    """Where packed rows go in padded layouts: [A, a] whole segments, then [G, N, r] responses.

    The prompts of the G groups are the first G of the A segments.
    """

    row_of_slot: Int[Tensor, " S"]
    """The packed row that a slot holds; 0 for padding."""
    slot_of_row: Int[Tensor, " T"]
    padding: Int[Tensor, " pads"]
    """The slots that hold no row."""
    whole: tuple[int, int]
    """(A, a)"""
    responses: tuple[int, int, int]
    """(G, N, r); G = 0 when nothing is shared"""
    prompts: Int[Tensor, " pairs"] | None
    """Length of each response's prompt; pairs is G * N, or 1 where all are alike."""
    visible: Bool[Tensor, "pairs 1 r keys"] | None
    """The a + r keys that each response token sees."""

    def within(self, window: int) -> Tensor | None:
        """`visible`, but of keys further back than a window of this size (0: none) nothing."""
        if self.visible is None or self.prompts is None or not window:
            return self.visible
        at = torch.arange(self.responses[2], device=self.visible.device)
        query = (self.prompts[:, None] + at)[:, None, :, None]
        before = torch.arange(self.whole[1], device=at.device).expand(len(self.prompts), -1)
        key = torch.cat((before, self.prompts[:, None] + at), dim=1)[:, None, None, :]
        return self.visible & (query - key < window)


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
    params.slots = _slots(batch) if padded and part is None else None
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


def _slots(batch: PackedBatch) -> Slots:
    borders = np.asarray(batch.cu_seqlens.cpu())
    lengths = np.diff(borders)
    prefix = batch.prefix_B or (-1,) * len(lengths)
    members: dict[int, list[int]] = {}
    for b, p in enumerate(prefix):
        if p >= 0:
            members.setdefault(p, []).append(b)
    whole = list(members) + [b for b, p in enumerate(prefix) if p < 0 and b not in members]
    longest = int(lengths[whole].max())
    count = max(map(len, members.values()), default=0)
    response = max((int(lengths[b]) for bs in members.values() for b in bs), default=0)
    starts = {b: i * longest for i, b in enumerate(whole)}
    base = len(whole) * longest
    for g, bs in enumerate(members.values()):
        starts |= {b: base + (g * count + n) * response for n, b in enumerate(bs)}
    size = base + len(members) * count * response
    row_of_slot = np.full(size, -1, np.int64)
    slot_of_row = np.empty(borders[-1], np.int64)
    for b, length in enumerate(lengths):
        slots, rows = np.arange(starts[b], starts[b] + length), np.arange(*borders[b : b + 2])
        row_of_slot[slots] = rows
        slot_of_row[rows] = slots
    prompts = lengths[list(members)].repeat(count)
    if members and (prompts == prompts[0]).all():
        prompts = prompts[:1]
    visible = _visible(prompts, longest, response) if members else None
    device = batch.tokens_T.device
    return Slots(
        row_of_slot=torch.from_numpy(np.maximum(row_of_slot, 0)).to(device),
        slot_of_row=torch.from_numpy(slot_of_row).to(device),
        padding=torch.from_numpy(np.flatnonzero(row_of_slot < 0)).to(device),
        whole=(len(whole), longest),
        responses=(len(members), count, response),
        prompts=torch.from_numpy(prompts).to(device) if members else None,
        visible=None if visible is None else visible.to(device),
    )


def _visible(prompts: NDArray[np.int32], longest: int, response: int) -> Tensor:
    """bool [pairs, 1, r, a + r]: all of a response's prompt, and its own tokens so far."""
    before = torch.arange(longest) < torch.from_numpy(prompts)[:, None]  # [pairs, a]
    before = before[:, None, None, :].expand(-1, 1, response, -1)
    own = torch.ones(response, response, dtype=torch.bool).tril()
    return torch.cat((before, own.expand(len(before), 1, -1, -1)), dim=-1)


class _SlotContext(Protocol):
    """What `_Pad` and `_Unpad` keep for their backward."""

    slots: Slots


class _Pad(torch.autograd.Function):
    """Rows [T, ...] -> slots [S, ...]. Padding slots repeat row 0; they get no gradient."""

    @staticmethod
    def forward(ctx: _SlotContext, x: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return x.index_select(0, slots.row_of_slot)

    @staticmethod
    def backward(ctx: _SlotContext, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.slots.slot_of_row), None


class _Unpad(torch.autograd.Function):
    """Slots [S, ...] -> rows [T, ...]."""

    @staticmethod
    def forward(ctx: _SlotContext, x: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return x.index_select(0, slots.slot_of_row)

    @staticmethod
    def backward(ctx: _SlotContext, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.index_select(0, ctx.slots.row_of_slot)
        return out.index_fill_(0, ctx.slots.padding, 0.0), None


class _Rotate(torch.autograd.Function):
    """Rotary embedding of x [T, heads, d] in halves, as Hugging Face lays them out."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin), the angle times `direction`.

    Halves of a head are short for a CPU's vectors, so only what needs them goes by halves.
    """
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x, cos, out=out)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, sin, value=-direction)
    out_second.addcmul_(first, sin, value=direction)
    return out


def _rotation(params: PackedParams, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if params.rotation is None:
        positions = params.positions_T
        angles = positions.float()[:, None, None] * inv_freq.to(positions.device)
        cos = angles.cos().to(dtype)
        params.rotation = (torch.cat((cos, cos), dim=-1), angles.sin().to(dtype))
    return params.rotation


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, slots: Slots, scores: Scores) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] through padded calls.

    Segments are padded on the right, so causality hides padding from every real query.
    """
    sizes = slots.whole
    split = sizes[0] * sizes[1]
    padded = [call(_Pad, x, slots) for x in (q, k, v)]
    visible = slots.within(scores.window)
    if visible is None:
        whole = [x.view(*sizes, *x.shape[1:]) for x in padded]
        return call(_Unpad, attend(whole[0], whole[1], whole[2], scores), slots)
    halves = [x.tensor_split([split]) for x in padded]
    whole = [half[0].view(*sizes, *half[0].shape[1:]) for half in halves]
    groups, count, _ = slots.responses

    def keys(prompts: Tensor, own: Tensor) -> Tensor:
        """[G * N, a + r, heads, d]: each response's own behind its prompt's."""
        own = own.view(*slots.responses, *own.shape[1:])
        before = prompts[:groups, None].expand(-1, count, -1, -1, -1)
        return torch.cat((before, own), dim=2).flatten(0, 1)

    queries = halves[0][1].view(groups * count, -1, *q.shape[1:])
    responses = attend(
        queries,
        keys(whole[1], halves[1][1]),
        keys(whole[2], halves[2][1]),
        scores,
        visible,
    )
    return call(_Unpad, torch.cat((attend(whole[0], whole[1], whole[2], scores), responses)), slots)


def _gathered(x: Tensor, params: PackedParams) -> Tensor:
    """Rows [T, ...] of all context-parallel ranks in packed order, from this rank's part."""
    parts: Tensor = gather_from_sequence_parallel_region(x.contiguous(), group=params.context_group)
    return parts[params.gathered_T]


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, params: PackedParams, scores: Scores
) -> Tensor:
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
    if scores.window:
        visible &= last - k_at < scores.window
    out = attend(q[q_rows], k[k_rows], v[k_rows], scores, visible[:, None])
    return out[(q_at < q_lengths[:, None]).flatten()]


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
        cos, sin = _rotation(params, self.inv_freq, query.dtype)
        q, k = (call(_Rotate, x.squeeze(1), cos, sin) for x in (query, key))
        v = value.squeeze(1)
        if params.gathered_T is not None:
            k, v = (_gathered(x, params) for x in (k, v))
        if params.slots is not None:
            out = _padded_attention(q, k, v, params.slots, self.scores)
        elif params.padded:
            out = _masked_attention(q, k, v, params, self.scores)
        else:
            out = _varlen_attention(q, k, v, params, self.scores)
        return out.reshape(q.shape[0], 1, -1)
