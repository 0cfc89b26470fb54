"""Packing: nothing lost, nothing twice, limits kept, and every token in its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passk_fast.batch import Sequence
from passk_fast.packing import pack, plan


@given(
    st.lists(st.integers(1, 64), max_size=40),
    st.integers(1, 5),
    st.integers(64, 200),
    st.integers(1, 4),
)
def test_the_plan_holds_everything_once(
    lengths: list[int], ranks: int, limit: int, divisor: int
) -> None:
    got = plan(lengths, ranks, limit, divisor)
    assert len(got) == ranks
    assert len({len(bins) for bins in got}) == 1
    assert len(got[0]) % divisor == 0
    assert sorted(i for bins in got for bin_ in bins for i in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in bin_) <= limit for bins in got for bin_ in bins)


def test_a_sequence_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens exceeds"):
        plan([3, 65], 1, 64)


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
