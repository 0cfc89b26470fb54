"""Small models of every architecture, and a hand-written reading of their Megatron parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from passk_fast.model.families import FAMILIES
from passk_fast.model.shape import ModelShape
from passk_fast.weights.megatron import Layout
from passk_fast.weights.placement import Side, Tensors


def model_shape(family: str, **changes: Any) -> ModelShape:
    """8 query heads over 4 key-value heads of 3 channels, 4 layers, a vocabulary of 13."""
    config: dict[str, object] = {
        "model_type": family,
        "num_hidden_layers": 4,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 13,
        "max_position_embeddings": 64,
    }
    mixture = FAMILIES[family].mixture
    if mixture:
        config |= {"num_experts": 4, "num_experts_per_tok": 2, mixture.width_field: 8}
    return replace(ModelShape.parse(config), head_dim=3, **changes)


def full_weights(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Hugging Face tensors, every value different from every other."""
    out, at = {}, 0
    for number in range(len(tensors)):
        shape = tensors.row_of(number).shape
        size = int(torch.Size(shape).numel())
        out[tensors.name(number)] = torch.arange(at, at + size, dtype=torch.float64).view(shape)
        at += size
    return out


def held(
    tensors: Tensors, side: Side, rank: int, full: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The parameters of one rank, filled by its rectangles; -1 where there is none."""
    out = {
        name: torch.full(size, -1.0, dtype=torch.float64)
        for name, size in side.shapes(rank).items()
    }
    for tensor, param, r0, r1, c0, c1, row, col in side.of_rank(rank).tolist():
        matrix = full[tensors.name(tensor)]
        matrix = matrix if matrix.ndim > 1 else matrix[:, None]
        target = out[side.names[param]][row : row + r1 - r0, col : col + c1 - c0]
        assert bool((target == -1).all()), "two rectangles in one place"
        target.copy_(matrix[r0:r1, c0:c1])
    return out


class Chunk(torch.nn.Module):
    """Parameters named and shaped as a Megatron rank's, without the model around them."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        shapes = layout.side.shapes(layout.rank)
        layers = sorted({int(n.split(".")[2]) for n in shapes if n.startswith("decoder.layers.")})
        for name, (rows, cols) in shapes.items():
            words = name.split(".")
            if name.startswith("decoder.layers."):
                words[2] = str(layers.index(int(words[2])))
            *path, last = words
            module: torch.nn.Module = self
            for word in path:
                if word not in dict(module.named_children()):
                    module.add_module(word, torch.nn.Module())
                module = module.get_submodule(word)
            size = (rows,) if cols == 1 else (rows, cols)
            module.register_parameter(last, torch.nn.Parameter(torch.full(size, -1.0)))
        numbered = self.get_submodule("decoder.layers")
        for at, layer in enumerate(layers):
            numbered.get_submodule(str(at)).layer_number = layer + 1
        self.decoder.layers = _Iterable(numbered)


class _Iterable(torch.nn.Module):
    """Layers that can be walked, under the names they had."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def __iter__(self) -> Any:
        return iter(self.children())
