"""The layout table: sharding and its inverse, and the QKV interleave against a plain loop."""

from __future__ import annotations

import pytest
import torch

from passk_fast.weights.layout import ModelShape, Split, entry, from_shards, to_shard

SHAPE = ModelShape(num_heads=8, num_kv_heads=4, head_dim=3, vocab=13, padded_vocab=16, tied=False)


def full_tensors(split: Split) -> list[torch.Tensor]:
    """Hugging Face tensors of a kind, all values distinct."""
    d = SHAPE.head_dim
    rows = {
        Split.QKV: [SHAPE.num_heads * d, SHAPE.num_kv_heads * d, SHAPE.num_kv_heads * d],
        Split.GATE_UP: [12, 12],
        Split.VOCAB: [SHAPE.vocab],
    }.get(split, [12])
    return [torch.randn(n, 8) for n in rows]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("split", list(Split))
def test_shards_put_together_are_the_whole(split: Split, size: int) -> None:
    tensors = full_tensors(split)
    shards = [to_shard(split, tensors, SHAPE, rank, size) for rank in range(size)]
    back = from_shards(split, shards, SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))


def test_qkv_is_grouped_by_key_value_head() -> None:
    q, k, v = full_tensors(Split.QKV)
    d, per_group = SHAPE.head_dim, SHAPE.num_heads // SHAPE.num_kv_heads
    rows = []
    for group in range(SHAPE.num_kv_heads):
        for head in range(per_group):
            start = (group * per_group + head) * d
            rows.append(q[start : start + d])
        rows += [k[group * d : (group + 1) * d], v[group * d : (group + 1) * d]]
    assert torch.equal(to_shard(Split.QKV, [q, k, v], SHAPE, 0, 1), torch.cat(rows))


def test_names_carry_the_layer() -> None:
    row = entry("decoder.layers.17.mlp.linear_fc1.weight", SHAPE)
    assert row.hf_names == (
        "model.layers.17.mlp.gate_proj.weight",
        "model.layers.17.mlp.up_proj.weight",
    )
    with pytest.raises(KeyError):
        entry("decoder.layers.0.mlp.unknown", SHAPE)
