"""Floating-point operations that a model's forward pass really needs, from its configuration.

A multiply-add counts two. Counted are the matrix products of every unpadded token, the output
layer where a token is scored, and causal attention by pairs of a query and a key that it sees;
norms, rotary embedding and softmax are not (under one part in a hundred at any size used here).
A backward pass costs twice the forward; recomputation is not counted, as is usual for MFU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Work:
    """What a set of sequences asks of a model, before its sizes are known."""

    tokens: int = 0
    """Tokens that pass through the layers."""
    scored: int = 0
    """Tokens whose next token's log-prob is asked for."""
    pairs: int = 0
    """Pairs of a query and a key that it sees, itself included, in one layer."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens, self.scored + other.scored, self.pairs + other.pairs
        )

    @classmethod
    def of_sequence(cls, prompt: int, response: int) -> Self:
        """A whole sequence of `prompt` + `response` tokens whose response is scored."""
        length = prompt + response
        return cls(length, response, length * (length + 1) // 2)

    @classmethod
    def of_shared(cls, prompt: int, responses: Iterable[int]) -> Self:
        """One prompt computed once for responses of these lengths, as packing shares it."""
        prefix = prompt - 1
        tokens, scored, pairs = prefix, 0, prefix * (prefix + 1) // 2
        for response in responses:
            tokens += response
            scored += response
            pairs += response * prefix + response * (response + 1) // 2
        return cls(tokens, scored, pairs)


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Sizes that decide the cost; `from_hf` reads them from a transformers config."""

    layers: int
    layer_weights: int
    """Weights of one layer's matrices that a token is multiplied with (its own experts alone)."""
    head_weights: int
    """Weights of the output layer: hidden size x vocabulary."""
    attention_width: int
    """Query heads x head size."""

    @classmethod
    def from_hf(cls, hf: Any) -> Self:
        """Sizes of a dense or mixture-of-experts decoder with a gated MLP."""
        hidden, heads = hf.hidden_size, hf.num_attention_heads
        size = getattr(hf, "head_dim", None) or hidden // heads
        attention = hidden * size * (2 * heads + 2 * hf.num_key_value_heads)
        experts = getattr(hf, "num_experts", None) or getattr(hf, "num_local_experts", None)
        if experts:
            width = getattr(hf, "moe_intermediate_size", None) or hf.intermediate_size
            mlp = 3 * hidden * width * hf.num_experts_per_tok + hidden * experts
        else:
            mlp = 3 * hidden * hf.intermediate_size
        return cls(
            layers=hf.num_hidden_layers,
            layer_weights=attention + mlp,
            head_weights=hidden * hf.vocab_size,
            attention_width=heads * size,
        )

    def forward(self, work: Work) -> float:
        """FLOPs of one forward pass."""
        layer = 2 * self.layer_weights * work.tokens + 4 * self.attention_width * work.pairs
        return float(self.layers * layer + 2 * self.head_weights * work.scored)

    def train(self, work: Work) -> float:
        """FLOPs of a forward and a backward pass."""
        return 3 * self.forward(work)
