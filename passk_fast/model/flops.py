"""Floating-point operations that a model's forward pass really needs, from its shape.

A multiply-add counts two. Counted are the matrix products of every unpadded token, the output
layer where a token is scored, and causal attention by pairs of a query and a key that it sees;
norms, rotary embedding and softmax are not (less than 1 % at any size used here). A backward pass
costs twice the forward pass; recomputation is not counted, as is usual for MFU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from passk_fast.model.shape import ModelShape


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
    """Sizes that decide the cost of a decoder with gated MLPs or mixtures of them."""

    layers: int
    layer_weights: int
    """Weights of one layer's matrices that a token is multiplied with (only its own experts)."""
    head_weights: int
    """Weights of the output layer: hidden size x vocabulary."""
    attention_width: int
    """Query heads x channels per head."""

    @classmethod
    def of(cls, shape: ModelShape) -> Self:
        """The sizes of a model."""
        hidden, size = shape.hidden, shape.head_dim
        attention = hidden * size * (2 * shape.num_heads + 2 * shape.num_kv_heads)
        mlp = 3 * hidden * shape.mlp_width
        if shape.num_experts:
            mlp = mlp * shape.experts_per_token + hidden * shape.num_experts
        return cls(
            layers=shape.num_layers,
            layer_weights=attention + mlp,
            head_weights=hidden * shape.vocab,
            attention_width=shape.num_heads * size,
        )

    def forward(self, work: Work) -> float:
        """FLOPs of one forward pass."""
        layer = 2 * self.layer_weights * work.tokens + 4 * self.attention_width * work.pairs
        return float(self.layers * layer + 2 * self.head_weights * work.scored)

    def train(self, work: Work) -> float:
        """FLOPs of a forward and a backward pass."""
        return 3 * self.forward(work)

    def balance_coefficients(self) -> tuple[float, float]:
        """(linear, quadratic) of `packing.plan`: FLOPs of a forward pass per token and per entry of
        the attention matrix.

        Every token passes all layers and, scored or not, the output layer; an entry counts half,
        since causal attention computes half of the matrix.
        """
        linear = 2.0 * (self.layers * self.layer_weights + self.head_weights)
        return linear, 2.0 * self.layers * self.attention_width
