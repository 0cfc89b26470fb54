"""Rotary embedding and padded attention over packed segments, against a plain float64 loop."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from passk_fast.data.packing import pack_shared
from passk_fast.data.types import PackedBatch, Sequence
from passk_fast.errors import ConfigError

pytestmark = pytest.mark.megatron

HEADS, KV_HEADS, CHANNELS = 4, 2, 8
SCALE = 3.0
"""Scores are divided by it; not the square root of the channels, which is the default."""
FREQUENCIES = 10000.0 ** -(torch.arange(0, CHANNELS, 2) / CHANNELS)

GROUPS: dict[str, list[tuple[int, list[int]]]] = {
    "even": [(4, [5, 5]), (4, [5, 5])],
    "uneven": [(7, [3, 9, 1]), (2, [4, 4, 4, 4]), (5, [6])],
    "one-token-prompt": [(1, [3, 2]), (6, [2, 8])],
    "nothing-shared": [(1, [3, 2])],
    "one-long-prompt": [(40, [3, 3]), *[(3, [2, 4, 3])] * 6],
    "one-long-response": [(2, [60, 2]), *[(3, [2, 4])] * 6, (4, [3])],
    "one-large-group": [(4, [1] * 30), *[(5, [2])] * 6, (3, [2])],
}
"""Length of the prompt and of its responses, group by group."""


def packed(groups: list[tuple[int, list[int]]]) -> PackedBatch:
    sequences, units = [], []
    for prompt, responses in groups:
        units.append(range(len(sequences), len(sequences) + len(responses)))
        for length in responses:
            tokens = tuple(range(prompt + length))
            sequences.append(
                Sequence(
                    token_ids=tokens,
                    prompt_length=prompt,
                    rollout_logprobs=(0.0,) * length,
                    advantage=1.0,
                )
            )
    return pack_shared(sequences, units, multiple=8, pad_id=0)


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of x [T, heads, d] in halves."""
    angles = positions[:, None, None] * FREQUENCIES.double()
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def reference(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, cap: float, window: int
) -> Tensor:
    """[T, heads * d]: each segment behind its prefix, one softmax a token."""
    q, k = turned(q, batch.positions_T), turned(k, batch.positions_T)
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    borders = batch.cu_seqlens.tolist()
    assert batch.prefix_B is not None
    out = []
    for b, prefix in enumerate(batch.prefix_B):
        before = range(borders[prefix], borders[prefix + 1]) if prefix >= 0 else range(0)
        for row in range(borders[b], borders[b + 1]):
            keys = [*before, *range(borders[b], row + 1)][-window:]
            scores = torch.einsum("hd,khd->hk", q[row], k[keys]) / SCALE
            if cap:
                scores = cap * torch.tanh(scores / cap)
            out.append(torch.einsum("hk,khd->hd", scores.softmax(dim=-1), v[keys]).flatten())
    return torch.stack(out)


def values_and_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, weights)]


@pytest.mark.parametrize("kind", GROUPS)
def test_padding_at_most_doubles_what_there_is(kind: str) -> None:
    """One long sequence among many short ones does not cost as if all were as long."""
    from passk_fast.actor.attention import packed_params

    batch = packed(GROUPS[kind])
    params = packed_params(batch, thd=False, padded=True)
    assert params.parts is not None
    parts = params.parts.parts
    tokens = len(batch.tokens_T)
    lengths = batch.cu_seqlens.diff().tolist()
    assert batch.prefix_B is not None
    keys = tokens + sum(lengths[p] for p in batch.prefix_B if p >= 0)
    assert sum(part.rows.numel() for part in parts) <= 2 * tokens
    assert sum(part.key_rows.numel() for part in parts) <= 2 * keys
    rows = torch.cat([part.rows.flatten() for part in parts])
    assert rows[params.parts.slot_of_row].tolist() == list(range(tokens))


@pytest.mark.parametrize(("cap", "window"), [(0.0, 0), (1.5, 0), (0.0, 4), (1.5, 4), (0.0, 100)])
@pytest.mark.parametrize("kind", GROUPS)
def test_equals_a_softmax_a_token(kind: str, cap: float, window: int) -> None:
    from passk_fast.actor.attention import PackedAttention, packed_params
    from passk_fast.actor.scores import Scores

    batch = packed(GROUPS[kind])
    generator = torch.Generator().manual_seed(0)
    tokens = len(batch.tokens_T)
    inputs = [
        torch.randn(tokens, 1, heads, CHANNELS, generator=generator).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    layer = PackedAttention(None)
    layer.inv_freq = FREQUENCIES
    layer.scores = Scores(scale=1 / SCALE, soft_cap=cap, window=window)
    params = packed_params(batch, thd=False, padded=True)
    got = values_and_gradients(layer(*inputs, packed_seq_params=params)[:, 0], inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    rows = [x[:, 0] for x in exact]
    want = values_and_gradients(reference(*rows, batch, cap, window), exact)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        # Sums of up to twenty products of order one, in float32.
        torch.testing.assert_close(
            a.double(), b, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_prompt_of_many_responses_has_gradients_rounded_once() -> None:
    """In bfloat16: 64 summands, each rounded, would be off by several units of the last place."""
    from passk_fast.actor.padded import Part, Parts, padded_attention
    from passk_fast.actor.scores import Scores

    rows = torch.arange(64)[:, None]  # 64 responses of a token behind a prompt of one
    keys = torch.cat((torch.full_like(rows, 64), rows), dim=1)
    parts = Parts((Part(rows, keys, torch.ones_like(rows)),), torch.arange(64))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.zeros(65, 1, 8, dtype=torch.bfloat16) for _ in range(2))
    v = torch.randn(65, 1, 8, generator=generator).bfloat16().requires_grad_()
    weights = torch.rand(64, 1, 8, generator=generator).bfloat16()
    out = padded_attention(q, k, v, parts, Scores())  # halves of both values
    (grad,) = torch.autograd.grad(out, v, weights)
    exact = weights.double().sum(dim=0) / 2
    assert ((grad[64].double() - exact).abs() <= exact * 2**-8).all()


def test_a_kernel_without_soft_cap_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from passk_fast.actor.scores import Scores

    capped = Scores(soft_cap=50.0)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ConfigError, match=r"attn_logit_softcapping = 50.0 .* flash-attn 2.6"):
        capped.check("cuda", torch.bfloat16)
    old = ModuleType("flash_attn")
    old.__dict__["flash_attn_varlen_func"] = lambda q, k, v, causal: q
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(ConfigError, match=r"attn_logit_softcapping = 50.0 .* flash-attn 2.6"):
        capped.check("cuda", torch.bfloat16)
    old.__dict__["flash_attn_varlen_func"] = lambda q, k, v, causal, softcap: q
    capped.check("cuda", torch.bfloat16)


@pytest.mark.parametrize(("cap", "device"), [(0.0, "cuda"), (50.0, "cpu")])
def test_what_can_cap_is_not_refused(
    cap: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from passk_fast.actor.scores import Scores

    monkeypatch.setitem(sys.modules, "flash_attn", None)
    Scores(soft_cap=cap).check(device, torch.bfloat16)
    Scores(soft_cap=50.0).check("cuda", torch.float32)
