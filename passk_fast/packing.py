"""Sequences -> data-parallel ranks -> packed micro-batches.

Every rank computes the same plan from the lengths alone, so nothing is communicated. All
data-parallel ranks get the same number of micro-batches (the pipeline needs it); a rank that has
too few sequences gets an empty one, which packs to padding that carries no loss.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from passk_fast.batch import PackedBatch, Sequence

_EMPTY_PIECE = 64
"""Length in tokens of the padding sequences of a micro-batch that has no real one."""


def plan(
    lengths: SequenceOf[int], data_size: int, max_tokens: int, divisor: int = 1
) -> list[list[list[int]]]:
    """Indices of sequences by [data rank][micro-batch].

    `lengths` in tokens; no micro-batch exceeds `max_tokens`, a ValueError if one sequence does.
    The number of micro-batches on each rank is a multiple of `divisor` (interleaved pipeline).
    Longest first to the least loaded rank, then first fit, then the micro-batch with most room.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"a sequence of {max(lengths)} tokens exceeds max_tokens = {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ranks: list[list[int]] = [[] for _ in range(data_size)]
    loads = [0] * data_size
    for i in order:
        rank = loads.index(min(loads))
        ranks[rank].append(i)
        loads[rank] += lengths[i]
    packed = [_first_fit(ranks[r], lengths, max_tokens) for r in range(data_size)]
    count = max(1, *(len(bins) for bins in packed))
    count = -(-count // divisor) * divisor
    return [bins + [[] for _ in range(count - len(bins))] for bins in packed]


def _first_fit(indices: list[int], lengths: SequenceOf[int], max_tokens: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for i in indices:
        target = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if target is None:
            bins.append([])
            room.append(max_tokens)
            target = len(bins) - 1
        bins[target].append(i)
        room[target] -= lengths[i]
    return bins


def pack(
    sequences: SequenceOf[Sequence], indices: SequenceOf[int], *, multiple: int, pad_id: int
) -> PackedBatch:
    """Pack `sequences[i] for i in indices` into one row of T tokens, T a multiple of `multiple`.

    Position t of a sequence predicts its token t + 1; the last position of each predicts nothing.
    Padding is cut into sequences no longer than the longest real one, so it costs no attention.
    """
    chosen = [sequences[i] for i in indices]
    total = sum(len(s.token_ids) for s in chosen)
    padding = -total % multiple or (multiple if total == 0 else 0)
    lengths = [len(s.token_ids) for s in chosen]
    piece = max(lengths, default=_EMPTY_PIECE)
    lengths += [piece] * (padding // piece) + ([padding % piece] if padding % piece else [])
    size = total + padding
    tokens = torch.full((size,), pad_id, dtype=torch.int64)
    targets = torch.full((size,), pad_id, dtype=torch.int64)
    mask = torch.zeros(size, dtype=torch.bool)
    advantages = torch.zeros(size, dtype=torch.float32)
    rollout = torch.zeros(size, dtype=torch.float32)
    owner = torch.full((size,), -1, dtype=torch.int64)
    start = 0
    for i, s in zip(indices, chosen, strict=True):
        end = start + len(s.token_ids)
        ids = torch.tensor(s.token_ids, dtype=torch.int64)
        tokens[start:end] = ids
        targets[start : end - 1] = ids[1:]
        response = slice(start + s.prompt_length - 1, end - 1)
        mask[response] = True
        advantages[response] = s.advantage
        rollout[response] = torch.tensor(s.rollout_logprobs, dtype=torch.float32)
        owner[start:end] = i
        start = end
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths_B.cumsum(0)
    positions = torch.arange(size) - cu_seqlens[:-1].long().repeat_interleave(lengths_B)
    return PackedBatch(
        tokens_T=tokens,
        positions_T=positions,
        targets_T=targets,
        mask_T=mask,
        advantages_T=advantages,
        rollout_logprobs_T=rollout,
        cu_seqlens=cu_seqlens,
        max_seqlen=max(lengths),
        sequence_index_T=owner,
    )
