"""Causal attention of packed segments through padded SDPA calls: on a CPU, and in float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from passk_fast.actor.autograd import call
from passk_fast.data.types import PackedBatch


@dataclass(frozen=True)
class Masks:
    """Which keys queries see, where causality alone does not say it."""

    whole: Bool[Tensor, "1 1 a a"] | None
    """Of whole segments; None: all before it."""
    responses: Bool[Tensor, "pairs 1 r keys"] | None
    """The a + r keys that each response token sees; pairs is G * N, or 1 where all are alike. None
    when nothing is shared."""


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
    prompts_G: NDArray[np.int32]
    """Lengths of the prompts that responses share."""
    masks: dict[int, Masks] = field(default_factory=dict)
    """By window: made by the first layer that has it."""

    def masks_of(self, window: int) -> Masks:
        """What queries see with a window of so many keys (0: none)."""
        if window not in self.masks:
            whole = window_mask(self.whole[1], window)
            responses = self._responses_see(window) if len(self.prompts_G) else None
            device = self.row_of_slot.device
            self.masks[window] = Masks(
                *(m if m is None else m.to(device) for m in (whole, responses))
            )
        return self.masks[window]

    def _moved(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.to(self.row_of_slot.device)

    def _responses_see(self, window: int) -> Tensor:
        """`Masks.responses`."""
        prompts, (_, count, response) = self.prompts_G, self.responses
        if (prompts == prompts[0]).all():
            prompts, count = prompts[:1], 1
        lengths = torch.from_numpy(prompts)[:, None, None]  # [G, 1, 1]
        keys, own = torch.arange(self.whole[1]), torch.arange(response)
        before = (keys < lengths).expand(-1, response, -1)  # [G, r, a]
        among = own[:, None] >= own
        if window:
            before = before & (lengths + own[:, None] - keys < window)
            among = among & (own[:, None] - own < window)
        before = before.repeat_interleave(count, 0)[:, None]
        return torch.cat((before, among.expand(len(before), 1, -1, -1)), dim=-1)


def window_mask(length: int, window: int) -> Bool[Tensor, "1 1 a a"] | None:
    """The last `window` keys of each query, its own included; None where that is all before it."""
    if not 0 < window < length:
        return None
    at = torch.arange(length)
    distance = at[:, None] - at
    return ((distance >= 0) & (distance < window))[None, None]


def make_slots(batch: PackedBatch) -> Slots:
    """The slots of a micro-batch without context parallelism."""
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
    device = batch.tokens_T.device
    return Slots(
        row_of_slot=torch.from_numpy(np.maximum(row_of_slot, 0)).to(device),
        slot_of_row=torch.from_numpy(slot_of_row).to(device),
        padding=torch.from_numpy(np.flatnonzero(row_of_slot < 0)).to(device),
        whole=(len(whole), longest),
        responses=(len(members), count, response),
        prompts_G=lengths[list(members)],
    )


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


def padded_attention(q: Tensor, k: Tensor, v: Tensor, slots: Slots, window: int) -> Tensor:
    """Causal attention of packed q, k, v [T, heads, d] through padded SDPA calls.

    Segments are padded on the right, so causality hides padding from every real query.
    """
    sizes = slots.whole
    split = sizes[0] * sizes[1]
    padded = [call(_Pad, x, slots) for x in (q, k, v)]
    masks = slots.masks_of(window)
    if masks.responses is None:
        whole = [x.view(*sizes, *x.shape[1:]) for x in padded]
        return call(_Unpad, attend(whole[0], whole[1], whole[2], masks.whole), slots)
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
        masks.responses,
    )
    return call(
        _Unpad, torch.cat((attend(whole[0], whole[1], whole[2], masks.whole), responses)), slots
    )


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """SDPA of q [B, a, heads, d] and k, v [B, b, kv_heads, d]; [B * a, heads, d].

    Causal, unless the keys that each query sees are given: bool [B or 1, 1, a, b].
    """
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
        enable_gqa=True,
    )
    return out.transpose(1, 2).flatten(0, 1)
