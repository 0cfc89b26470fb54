"""vLLM on CPU, where a small model's decoding is half Python: the same results with less of it.

Nothing here is used on a GPU. Measured by `benchmarks/decode_overhead.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

NORM_PROVIDER = "passk_fast_cpu"
"""Name of our norms among vLLM's implementations of its operators."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def register_norms() -> dict[str, list[str]]:
    """Register vLLM's own fused CPU norms, which it uses on GPUs only; returns their priority.

    Left to itself vLLM composes a norm of six torch operators.
    """
    from vllm import ir

    def plain(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> bool:
        return variance_size is None and weight is not None and weight.dtype == x.dtype

    def rms_norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        x = x.contiguous()  # the kernel reads queries and keys as if they were
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, epsilon)
        return out

    def contiguous(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> bool:
        fits = plain(x, weight, epsilon, variance_size)
        return fits and x.is_contiguous() and x_residual.is_contiguous()

    def fused_add_rms_norm(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual

    if NORM_PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(NORM_PROVIDER, supports_args=plain)(rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(
            NORM_PROVIDER, supports_args=contiguous, inplace=True
        )(fused_add_rms_norm)
    return {name: [NORM_PROVIDER, "native"] for name in ("rms_norm", "fused_add_rms_norm")}


class SeededDraws:
    """Seeds of the next draw of each row: a hash of the request's seed and of its draws so far.

    vLLM asks every request's generator in turn, which costs more than the draw.
    """

    def __init__(self) -> None:
        self._known: dict[int, list[Any]] = {}
        """By id of a generator: itself (so that the id stays its own), its seed, its draws."""
        self._rows: list[int] = []
        self._seeds_B = self._draws_B = np.empty(0, np.uint64)

    def take(self, generators: dict[int, torch.Generator], batch: int) -> Tensor:
        """int64 [batch] in [0, 2**31): the seed of each row; random for rows without generator."""
        rows = [id(generator) for generator in generators.values()]
        if rows != self._rows:
            self._put_back()
            for key, generator in zip(rows, generators.values(), strict=True):
                self._known.setdefault(key, [generator, generator.initial_seed(), 0])
            entries = [self._known[key] for key in rows]
            self._seeds_B = np.array([entry[1] for entry in entries], np.uint64)
            self._draws_B = np.array([entry[2] for entry in entries], np.uint64)
            self._rows = rows
        self._draws_B += np.uint64(1)
        seeds_B = torch.randint(0, 2**31, (batch,))
        mixed_B = _mix(_mix(self._seeds_B) + self._draws_B * _GOLDEN) >> np.uint64(33)
        seeds_B[list(generators)] = torch.from_numpy(mixed_B.astype(np.int64))
        return seeds_B

    def forget(self) -> None:
        """Between batches of requests: none that was seen will come again."""
        self._known, self._rows = {}, []
        self._seeds_B = self._draws_B = np.empty(0, np.uint64)

    def _put_back(self) -> None:
        for key, draws in zip(self._rows, self._draws_B.tolist(), strict=True):
            self._known[key][2] = draws


def _mix(x_B: np.ndarray) -> np.ndarray:
    """SplitMix64's finisher (Steele, Lea, Flood 2014), uint64 [B]."""
    x_B = (x_B ^ (x_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_B = (x_B ^ (x_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_B ^ (x_B >> np.uint64(31))


def draw_by_seed(worker: Any) -> SeededDraws:
    """Let a vLLM worker's sampler on CPU draw with `SeededDraws`; returns them."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    sampler = worker.model_runner.sampler.topk_topp_sampler
    inner, draws = sampler.forward, SeededDraws()

    def forward(
        logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if not generators or sampler.use_fp64_gumbel:
            return inner(logits, generators, k, p)
        logits = apply_top_k_top_p(logits, k, p)
        returned = None
        if sampler.logprobs_mode == "processed_logprobs":
            returned = logits.log_softmax(dim=-1, dtype=torch.float32)
        seeds_B = draws.take(generators, len(logits))
        return torch.ops._C.fused_gumbel_argmax(logits.float(), seeds_B), returned

    sampler.forward = forward
    return draws
