"""Sequences -> data-parallel ranks -> packed micro-batches.

Every rank computes the same plan from the lengths alone, so nothing is communicated. With shared
prompts what is planned and packed is a unit, responses to one prompt: the prompt's tokens stand in
the micro-batch once, and every response attends to them.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from passk_fast import native
from passk_fast.data.types import PackedBatch, RoutedRows, Sequence

_EMPTY_PIECE = 64
"""Length in tokens of the padding segments of a micro-batch that has no real one."""


def plan(
    lengths: SequenceOf[int],
    data_size: int,
    max_tokens: int,
    divisor: int = 1,
    *,
    linear: float = 1.0,
    quadratic: float = 0.0,
    pairs: SequenceOf[int] | None = None,
) -> list[list[list[int]]]:
    """Indices of sequences by [data rank][micro-batch].

    `lengths` in tokens; no micro-batch exceeds `max_tokens`, a ValueError names a sequence that
    does. All ranks get the same number of micro-batches, a multiple of `divisor` (interleaved
    pipeline), as few as can be found. Computed by csrc/: the same for the same lengths on every
    rank, and with the same costs in whatever order they are listed.

    A sequence costs `linear * length + quadratic * pairs`, in any unit: what is balanced, first
    over ranks, then over each rank's micro-batches, is the sum of it. `linear` is the work a token
    takes whatever surrounds it (every matrix product with weights), `quadratic` that of one entry
    of the attention matrix (`ModelFlops.balance_coefficients`). `pairs` is length**2 unless given.
    """
    tokens = np.asarray(lengths, np.int64)
    squares = tokens * tokens if pairs is None else np.asarray(pairs, np.int64)
    return native.plan_micro_batches(
        tokens, squares, data_size, max_tokens, divisor, linear, quadratic
    )


# ---- shared prompts ----------------------------------------------------------------------------


_EVEN = 1.01
"""Largest rank over mean up to which no group is cut, since its prompt is computed twice then."""


def plan_units(
    sequences: SequenceOf[Sequence],
    data_size: int,
    max_tokens: int,
    divisor: int = 1,
    *,
    linear: float = 1.0,
    quadratic: float = 0.0,
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Units of `shared_units`, and the indices of units by [data rank][micro-batch], as of `plan`.

    A few whole groups per rank are seldom even. Where they are not, the groups left over after each
    rank has as many as the others are cut, or these and one more per rank: whichever leaves the
    least work on the costliest rank, including the prompts that cutting repeats.
    """
    groups = prompt_groups(sequences)
    rest = len(groups) % data_size
    best: tuple[list[list[int]], list[list[list[int]]]] = ([], [])
    least = float("inf")
    for cut in dict.fromkeys((0, rest, min(rest + data_size, len(groups)))):
        units = shared_units(sequences, groups, data_size, max_tokens, cut)
        tokens = [unit_length(sequences, unit) for unit in units]
        pairs = [unit_pairs(sequences, unit) for unit in units]
        made = plan(
            tokens, data_size, max_tokens, divisor, linear=linear, quadratic=quadratic, pairs=pairs
        )
        ranks = [
            sum(linear * tokens[u] + quadratic * pairs[u] for micro in rank for u in micro)
            for rank in made
        ]
        if max(ranks) < least:
            least, best = max(ranks), (units, made)
        if data_size == 1 or max(ranks) * data_size <= _EVEN * sum(ranks):
            break
    return best


_WORTHWHILE = 0.1
"""Least share of tokens left out at which sharing prompts is faster: below it, attention in the
shared layout costs more than that. Measured on a CPU."""


def sharing_saves(sequences: SequenceOf[Sequence]) -> bool:
    """Whether sharing prompts leaves out a tenth of the tokens at least: prompts that several
    sequences have, and that are not short beside them. The same on every rank."""
    whole = sum(len(s.token_ids) for s in sequences)
    groups = prompt_groups(sequences)
    shared = sum(unit_length(sequences, group) for group in groups)
    return len(groups) < len(sequences) and shared <= (1 - _WORTHWHILE) * whole


def prompt_groups(sequences: SequenceOf[Sequence]) -> list[list[int]]:
    """Indices of neighbours with one prompt."""
    groups: list[list[int]] = []
    for i, s in enumerate(sequences):
        if groups and _same_prompt(sequences[groups[-1][0]], s):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def shared_units(
    sequences: SequenceOf[Sequence],
    groups: SequenceOf[SequenceOf[int]],
    data_size: int,
    max_tokens: int,
    cut: int = 0,
) -> list[list[int]]:
    """Indices of sequences by unit: parts of `prompt_groups` that fit in `max_tokens`.

    The `cut` groups with the most response tokens are cut where these, laid end to end, pass from
    one data-parallel rank's equal share to the next one's.
    """
    sizes = [sum(sequences[i].response_length for i in group) for group in groups]
    largest = sorted(range(len(groups)), key=lambda g: -sizes[g])[:cut]
    total = sum(sizes[g] for g in largest)
    share_of = {g: data_size / max(1, total) for g in largest}
    units: list[list[int]] = []
    laid = 0
    for g, group in enumerate(groups):
        room, before = 0, -1
        for i in group:
            length = sequences[i].response_length
            share = int((laid + length / 2) * share_of.get(g, 0.0))
            laid += length if g in share_of else 0
            if share != before or room < length:
                units.append([])
                room, before = max_tokens - sequences[i].prompt_length + 1, share
            units[-1].append(i)
            room -= length
    return units


def _same_prompt(a: Sequence, b: Sequence) -> bool:
    size = a.prompt_length
    return size == b.prompt_length and a.token_ids[:size] == b.token_ids[:size]


def unit_length(sequences: SequenceOf[Sequence], unit: SequenceOf[int]) -> int:
    """Packed tokens of a unit: the prompt but its last token, then each response's."""
    return sequences[unit[0]].prompt_length - 1 + sum(sequences[i].response_length for i in unit)


def unit_pairs(sequences: SequenceOf[Sequence], unit: SequenceOf[int]) -> int:
    """`pairs` of a unit for `plan`: twice its causal pairs, the prompt's among themselves once."""
    prompt = sequences[unit[0]].prompt_length - 1
    responses = (sequences[i].response_length for i in unit)
    return prompt * prompt + sum(r * (2 * prompt + r) for r in responses)


# ---- packing -----------------------------------------------------------------------------------


class _Rows:
    """The columns of a micro-batch, filled segment by segment."""

    def __init__(self, size: int, pad_id: int, experts: tuple[int, ...] | None) -> None:
        """`experts`: (M, K) of the sequences' routed experts."""
        self.tokens = np.full(size, pad_id, np.int64)
        self.targets = np.full(size, pad_id, np.int64)
        self.positions = np.zeros(size, np.int64)
        self.mask = np.zeros(size, np.bool_)
        self.advantages = np.zeros(size, np.float32)
        self.rollout = np.zeros(size, np.float32)
        self.owner = np.full(size, -1, np.int64)
        self.experts = None if experts is None else np.full((size, *experts), -1, np.int16)
        self.lengths: list[int] = []
        self.prefix: list[int] = []
        self.copies = np.zeros(size, np.float32)
        self.members: list[tuple[int, int]] = []
        self.filled = 0
        self.real = 0

    def segment(
        self, s: Sequence, owner: int, first: int, last: int, prefix: int = -1, copies: int = 1
    ) -> None:
        """Tokens first..last - 1 of a sequence, and their targets where there are any."""
        length = last - first
        at = slice(self.filled, self.filled + length)
        self.tokens[at] = s.token_ids[first:last]
        targets = s.token_ids[first + 1 : last + 1]
        self.targets[self.filled : self.filled + len(targets)] = targets
        self.positions[at] = np.arange(first, last)
        self.owner[at] = owner
        self.copies[self.filled : self.filled + len(targets)] = copies
        if owner >= 0:
            self.members.append((len(self.lengths), prefix))
        if self.experts is not None and s.routed_experts is not None:
            routed = s.routed_experts[first:last]
            self.experts[self.filled : self.filled + len(routed)] = routed
        # The first response token is predicted at position prompt_length - 1.
        begin = self.filled + s.prompt_length - 1 - first
        end = min(begin + s.response_length, self.filled + length)
        if begin < end:
            self.mask[begin:end] = True
            self.advantages[begin:end] = s.advantage
            self.rollout[begin:end] = s.rollout_logprobs[: end - begin]
        self._close(length, prefix)

    def pad(self, piece: int) -> None:
        """Fill up with segments of at most `piece` tokens, which attend only to themselves."""
        self.real = self.filled
        while left := len(self.tokens) - self.filled:
            length = min(piece, left)
            self.positions[self.filled : self.filled + length] = np.arange(length)
            self._close(length, -1)

    def _close(self, length: int, prefix: int) -> None:
        self.lengths.append(length)
        self.prefix.append(prefix)
        self.filled += length

    def batch(self, *, shared: bool) -> PackedBatch:
        borders = np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int32)
        return PackedBatch(
            tokens_T=torch.from_numpy(self.tokens),
            positions_T=torch.from_numpy(self.positions),
            targets_T=torch.from_numpy(self.targets),
            mask_T=torch.from_numpy(self.mask),
            advantages_T=torch.from_numpy(self.advantages),
            rollout_logprobs_T=torch.from_numpy(self.rollout),
            cu_seqlens=torch.from_numpy(borders),
            max_seqlen=max(self.lengths),
            sequence_index_T=torch.from_numpy(self.owner),
            real_tokens=self.real,
            prefix_B=tuple(self.prefix) if shared else None,
            routed=RoutedRows(
                copies_T=torch.from_numpy(self.copies),
                segment_T=torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths)),
                segments=len(self.lengths),
                members_S2=torch.tensor(self.members, dtype=torch.int64).view(-1, 2),
            ),
            experts_TMK=None if self.experts is None else torch.from_numpy(self.experts),
        )


def _experts(sequences: SequenceOf[Sequence]) -> tuple[int, ...] | None:
    """(layers, experts per token) of the routed experts, if there are any."""
    known = (s.routed_experts for s in sequences if s.routed_experts is not None)
    first = next(known, None)
    return None if first is None else first.shape[1:]


def _padded(total: int, multiple: int) -> int:
    """`total` rounded up to a multiple, and at least one multiple."""
    return max(1, -(-total // multiple)) * multiple


def pack(
    sequences: SequenceOf[Sequence], indices: SequenceOf[int], *, multiple: int, pad_id: int
) -> PackedBatch:
    """Pack `sequences[i] for i in indices` into one row of T tokens, T a multiple of `multiple`.

    Position t of a sequence predicts its token t + 1; the last position of each predicts nothing.
    Padding is cut into segments no longer than the longest sequence, so it costs no attention.
    """
    lengths = [len(sequences[i].token_ids) for i in indices]
    rows = _Rows(_padded(sum(lengths), multiple), pad_id, _experts(sequences))
    for i, length in zip(indices, lengths, strict=True):
        rows.segment(sequences[i], i, 0, length)
    rows.pad(max(lengths, default=_EMPTY_PIECE))
    return rows.batch(shared=False)


def pack_shared(
    sequences: SequenceOf[Sequence],
    units: SequenceOf[SequenceOf[int]],
    *,
    multiple: int,
    pad_id: int,
) -> PackedBatch:
    """Pack units of `shared_units` into one row of T tokens, T a multiple of `multiple`.

    A unit's prompt, without its last token, is a segment of its own; each response is a segment
    that begins with the prompt's last token and leaves out its own last, which predicts nothing.
    The prompt's routed experts are those of the unit's first response.
    """
    total = sum(unit_length(sequences, unit) for unit in units)
    rows = _Rows(_padded(total, multiple), pad_id, _experts(sequences))
    for unit in units:
        shared = sequences[unit[0]].prompt_length - 1
        prefix = -1
        if shared:
            prefix = len(rows.lengths)
            rows.segment(sequences[unit[0]], -1, 0, shared, copies=len(unit))
        for i in unit:
            rows.segment(sequences[i], i, shared, len(sequences[i].token_ids) - 1, prefix)
    rows.pad(max(rows.lengths, default=_EMPTY_PIECE))
    return rows.batch(shared=True)
