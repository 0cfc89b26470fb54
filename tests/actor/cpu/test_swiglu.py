"""SwiGLU in blocks of rows is what autograd computes from chunk, silu and product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.megatron


def plain(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def both(x: Tensor, function: object) -> tuple[Tensor, Tensor]:
    """(values, gradient) of a function at x."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(x.dtype)
    (grad,) = torch.autograd.grad(out, leaf, weights)
    return out.detach(), grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(0, 8), (3, 1, 8), (700, 1, 1024), (2, 1, 1 << 19)],
    ids=["no-rows", "one-block", "three-blocks-one-short", "rows-beyond-a-block"],
)
def test_bit_for_bit_autograds(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from passk_fast.actor.cpu.swiglu import swiglu

    x = (4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    for got, want in zip(both(x, swiglu), both(x, plain), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_strided_input_and_gradient() -> None:
    from passk_fast.actor.cpu.swiglu import swiglu

    x = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1)).transpose(1, 2)

    def turned(function: object) -> tuple[Tensor, Tensor]:
        return both(x, lambda leaf: function(leaf).transpose(0, 2))  # type: ignore[operator]

    for got, want in zip(turned(swiglu), turned(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("device", "ours"), [("cpu", True), ("cuda", False)])
def test_dense_layers_on_a_cpu_have_it(device: str, ours: bool) -> None:
    from passk_fast.actor.cpu.swiglu import Swiglu
    from passk_fast.actor.model import layer_spec, transformer_config
    from passk_fast.config import ParallelConfig, ShapeConfig
    from passk_fast.model.shape import ModelShape

    shape = ModelShape.of(ShapeConfig(architecture="llama"))
    spec = layer_spec(shape, transformer_config(shape, ParallelConfig(), "float32", device))
    mlp = spec.submodules.mlp
    parts = getattr(mlp, "keywords", {}).get("submodules") or mlp.submodules
    assert (parts.activation_func is Swiglu) == ours
