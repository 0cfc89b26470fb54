"""Packing: every token in its place. The plan: see test_plan_micro_batches.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.batch import Sequence
from passk_fast.context import context_part
from passk_fast.packing import pack, pack_shared, shared_units, unit_length


def sequence(prompt: int, response: int, start: int) -> Sequence:
    """Tokens start, start + 1, ...; log-probs -1, -2, ...; advantage `start`."""
    return Sequence(
        token_ids=tuple(range(start, start + prompt + response)),
        prompt_length=prompt,
        rollout_logprobs=tuple(-1.0 - i for i in range(response)),
        advantage=float(start),
    )


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6),
    st.sampled_from([1, 2, 4, 100]),
)
def test_every_token_is_in_its_place(shapes: list[tuple[int, int]], multiple: int) -> None:
    sequences = [sequence(p, r, 100 * (i + 1)) for i, (p, r) in enumerate(shapes)]
    batch = pack(sequences, range(len(sequences)), multiple=multiple, pad_id=0)
    total = len(batch.tokens_T)
    assert total % multiple == 0
    assert total > 0
    assert batch.cu_seqlens[0] == 0
    assert batch.cu_seqlens[-1] == total
    assert int((batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).max()) == batch.max_seqlen
    for i, s in enumerate(sequences):
        at = batch.sequence_index_T == i
        assert tuple(batch.tokens_T[at].tolist()) == s.token_ids
        assert torch.equal(batch.positions_T[at], torch.arange(len(s.token_ids)))
        trained = at & batch.mask_T
        assert tuple(batch.targets_T[trained].tolist()) == s.token_ids[s.prompt_length :]
        assert tuple(batch.rollout_logprobs_T[trained].tolist()) == s.rollout_logprobs
        assert set(batch.advantages_T[trained].tolist()) == {s.advantage}
    assert not batch.mask_T[batch.sequence_index_T == -1].any()


@st.composite
def groups(draw: st.DrawFn) -> list[Sequence]:
    """Groups of responses to one prompt, neighbours in the list."""
    out = []
    for g in range(draw(st.integers(0, 4))):
        prompt = tuple(range(1000 * g, 1000 * g + draw(st.integers(1, 9))))
        for n, response in enumerate(draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))):
            first = 1000 * g + 100 * (n + 1)
            out.append(
                Sequence(
                    token_ids=prompt + tuple(range(first, first + response)),
                    prompt_length=len(prompt),
                    rollout_logprobs=tuple(-1.0 - i for i in range(response)),
                    advantage=float(first + 1),
                )
            )
    return out


@given(groups(), st.integers(1, 4), st.sampled_from([18, 40, 400]), st.sampled_from([1, 4]))
def test_shared_prompts_stand_once_in_front_of_their_responses(
    sequences: list[Sequence], ranks: int, limit: int, multiple: int
) -> None:
    units = shared_units(sequences, ranks, limit)
    assert [i for unit in units for i in unit] == list(range(len(sequences)))
    assert all(unit_length(sequences, unit) <= limit for unit in units)
    batch = pack_shared(sequences, units, multiple=multiple, pad_id=0)
    assert len(batch.tokens_T) % multiple == 0
    assert batch.prefix_B is not None
    borders = batch.cu_seqlens.tolist()
    seen = []
    for b, prefix in enumerate(batch.prefix_B):
        own = slice(borders[b], borders[b + 1])
        index = int(batch.sequence_index_T[own][0])
        if index < 0:
            assert not batch.mask_T[own].any()
            continue
        seen.append(index)
        s = sequences[index]
        before = slice(borders[prefix], borders[prefix + 1]) if prefix >= 0 else slice(0, 0)
        tokens = batch.tokens_T[before].tolist() + batch.tokens_T[own].tolist()
        positions = batch.positions_T[before].tolist() + batch.positions_T[own].tolist()
        assert tuple(tokens) == s.token_ids[:-1]
        assert positions == list(range(len(s.token_ids) - 1))
        assert batch.mask_T[own].all()
        assert tuple(batch.targets_T[own].tolist()) == s.token_ids[s.prompt_length :]
        assert tuple(batch.rollout_logprobs_T[own].tolist()) == s.rollout_logprobs
        assert set(batch.advantages_T[own].tolist()) == {s.advantage}
    assert seen == list(range(len(sequences)))


def with_experts(s: Sequence) -> Sequence:
    """Layer m of token t has experts 4 t + 2 m and the next."""
    tokens = np.array(s.token_ids[:-1], np.int16)[:, None, None]
    return replace(s, routed_experts=4 * tokens + np.arange(4, dtype=np.int16).reshape(2, 2))


@given(groups(), st.sampled_from([1, 4]), st.booleans())
def test_experts_stay_with_their_tokens(
    sequences: list[Sequence], multiple: int, shared: bool
) -> None:
    sequences = [with_experts(s) for s in sequences]
    if shared:
        units = shared_units(sequences, 1, 400)
        batch = pack_shared(sequences, units, multiple=multiple, pad_id=0)
    else:
        batch = pack(sequences, range(len(sequences)), multiple=multiple, pad_id=0)
    if not sequences:
        assert batch.experts_TMK is None
        return
    assert batch.experts_TMK is not None
    assert batch.experts_TMK.dtype == torch.int16
    assert batch.experts_TMK.shape == (len(batch.tokens_T), 2, 2)
    unknown = torch.zeros(len(batch.tokens_T), dtype=torch.bool)
    unknown[batch.real_tokens :] = True
    if not shared:  # the last token of a sequence, which was never run in sampling
        unknown[batch.cu_seqlens[1 : len(sequences) + 1].long() - 1] = True
    expected = 4 * batch.tokens_T[:, None, None] + torch.arange(4).view(2, 2)
    expected[unknown] = -1
    assert torch.equal(batch.experts_TMK.long(), expected)


def test_experts_follow_their_rows_to_context_parallel_ranks() -> None:
    sequences = [with_experts(sequence(3, 9, 100)), with_experts(sequence(2, 5, 200))]
    batch = pack(sequences, range(2), multiple=4, pad_id=0)
    assert batch.experts_TMK is not None
    for rank in range(2):
        part = context_part(batch, rank, 2)
        assert part.experts_TMK is not None
        known = part.experts_TMK[:, 0, 0] >= 0
        assert torch.equal(part.experts_TMK[known, 0, 0].long(), 4 * part.tokens_T[known])
        assert int(known.sum()) > 0
