"""Packing: every token in its place. The plan: see test_plan_micro_batches.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from passk_fast.data.context_parallel import context_part
from passk_fast.data.packing import (
    pack,
    pack_shared,
    plan,
    plan_units,
    prompt_groups,
    shared_units,
    sharing_saves,
    unit_length,
    unit_pairs,
)
from passk_fast.data.types import Sequence


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


@given(
    groups(),
    st.integers(1, 4),
    st.sampled_from([18, 40, 400]),
    st.sampled_from([1, 4]),
    st.integers(0, 5),
)
def test_shared_prompts_stand_once_in_front_of_their_responses(
    sequences: list[Sequence], ranks: int, limit: int, multiple: int, cut: int
) -> None:
    units = shared_units(sequences, prompt_groups(sequences), ranks, limit, cut)
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


def whole_group(prompt: int, responses: list[int], start: int) -> list[Sequence]:
    """Responses of these lengths to a prompt of `prompt` tokens, all of them `start`."""
    first = sequence(prompt, max(responses), start)
    first = replace(first, token_ids=(start,) * len(first.token_ids))
    return [
        replace(
            first,
            token_ids=first.token_ids[: prompt + n],
            rollout_logprobs=first.rollout_logprobs[:n],
        )
        for n in responses
    ]


def rank_costs(
    sequences: list[Sequence], units: list[list[int]], made: list[list[list[int]]]
) -> list[float]:
    """Cost of each rank's units, 3 a token and 1 a pair."""
    costs = [3.0 * unit_length(sequences, u) + unit_pairs(sequences, u) for u in units]
    return [sum(costs[u] for micro in rank for u in micro) for rank in made]


def test_groups_that_do_not_divide_by_the_ranks_are_cut() -> None:
    """Five groups over two ranks: two each, and half of one."""
    sequences = [s for g in range(5) for s in whole_group(5, [20] * 16, 100 + g)]
    units, made = plan_units(sequences, 2, 10_000)
    assert sorted(map(len, units)) == [8, 8, 16, 16, 16, 16]
    assert sorted(i for unit in units for i in unit) == list(range(len(sequences)))
    tokens = [sum(unit_length(sequences, units[u]) for m in rank for u in m) for rank in made]
    assert tokens == [2 * (4 + 16 * 20) + 4 + 8 * 20] * 2


@pytest.mark.parametrize(
    ("prompt", "responses", "saves"),
    [
        (64, [16] * 8, True),
        (64, [16], False),  # one response
        (2, [128] * 8, False),  # a prompt too short to matter
        (16, [64] * 8, True),
        (8, [64] * 8, False),
    ],
)
def test_prompts_are_worth_sharing_where_they_are_a_tenth_of_the_work(
    prompt: int, responses: list[int], saves: bool
) -> None:
    assert sharing_saves(whole_group(prompt, responses, 0)) == saves
    assert not sharing_saves([])


def test_one_repeated_prompt_among_many_is_not_worth_it() -> None:
    alone = [s for i in range(20) for s in whole_group(20, [20], 100 * (i + 1))]
    assert not sharing_saves([*whole_group(20, [20, 20], 0), *alone])


def test_groups_that_are_even_stay_whole() -> None:
    sequences = [s for g in range(6) for s in whole_group(5, [20] * 16, 100 + g)]
    units, _ = plan_units(sequences, 3, 10_000)
    assert [len(unit) for unit in units] == [16] * 6


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), max_size=12),
    st.integers(1, 8),
    st.sampled_from([1, 3]),
)
def test_cutting_never_gives_the_costliest_rank_more_to_do(
    responses: list[list[int]], ranks: int, divisor: int
) -> None:
    sequences = [s for g, r in enumerate(responses) for s in whole_group(6, r, 100 + g)]
    units, made = plan_units(sequences, ranks, 120, divisor, linear=3.0, quadratic=1.0)
    assert sorted(u for rank in made for micro in rank for u in micro) == list(range(len(units)))
    assert [i for unit in units for i in unit] == list(range(len(sequences)))
    assert {len(rank) % divisor for rank in made} == {0}
    for rank in made:
        for micro in rank:
            assert sum(unit_length(sequences, units[u]) for u in micro) <= 120
    whole = shared_units(sequences, prompt_groups(sequences), ranks, 120)
    uncut = plan(
        [unit_length(sequences, u) for u in whole],
        ranks,
        120,
        divisor,
        linear=3.0,
        quadratic=1.0,
        pairs=[unit_pairs(sequences, u) for u in whole],
    )
    most = max(rank_costs(sequences, units, made))
    assert most <= max(rank_costs(sequences, whole, uncut)) * (1 + 1e-12)


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
        units = shared_units(sequences, prompt_groups(sequences), 1, 400)
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


def test_columns_of_another_length_or_type_are_refused() -> None:
    """Shapes and element types of a batch's fields are checked while tests run."""
    batch = pack([sequence(3, 2, 1)], [0], multiple=4, pad_id=0)
    for wrong in (torch.zeros(3, dtype=torch.bool), torch.zeros(len(batch.tokens_T))):
        with pytest.raises(TypeCheckError, match="mask_T"):
            replace(batch, mask_T=wrong)
