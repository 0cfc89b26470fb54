"""Sampling and norms of vLLM on CPU, where half of a small model's decoding time is Python.

Used with rollout.cpu_fast_path alone; `benchmarks/rollout.py` measures it against vLLM's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.v1.worker.cpu_worker import CPUWorker

NORM_PROVIDER = "passk_fast_cpu"
"""Name of our norms among vLLM's implementations of its operators."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def register_norms() -> dict[str, list[str]]:
    """On CPU vLLM composes a norm of six torch operators; it has fused ones but does not use them.

    Registers them as implementations of its operators; returns the priority to start vLLM with.
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


class _Request:
    """What one request has drawn."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator  # kept, so that no other generator gets its id
        self.seed = generator.initial_seed()
        self.draws = 0
        self.logprobs: list[float] = []


class SeededSampler:
    """Draws tokens with one seed per draw, and keeps the log-prob of each.

    The seed of a draw is a hash of the request's seed and of how many draws the request has made.
    vLLM asks every request's generator in turn, and carries log-probs through five layers per
    token: together more work than the draw itself.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Between batches of requests: none that was seen will come again."""
        self._known: dict[int, _Request] = {}
        """By id of the generator."""
        self._by_seed: dict[int, _Request] = {}
        self._rows: list[int] = []
        self._requests: list[_Request] = []
        self._seeds_B = np.empty(0, np.uint64)

    def draw(self, logprobs_BV: Tensor, generators: dict[int, torch.Generator]) -> Tensor:
        """Tokens int64 [B] for the log-probs of the B rows; `generators` by row."""
        seeds_B = self.seeds(generators, len(logprobs_BV))
        tokens_B: Tensor = torch.ops._C.fused_gumbel_argmax(logprobs_BV, seeds_B)
        drawn = logprobs_BV.gather(1, tokens_B.long()[:, None])[:, 0].tolist()
        for row, request in zip(generators, self._requests, strict=True):
            request.logprobs.append(drawn[row])
        return tokens_B

    def seeds(self, generators: dict[int, torch.Generator], batch: int) -> Tensor:
        """The seeds of the next draw, int64 [batch] in [0, 2**31).

        Rows without a generator get random ones.
        """
        rows = [id(generator) for generator in generators.values()]
        if rows != self._rows:
            self._rows, self._requests = rows, [self._of(g) for g in generators.values()]
            self._seeds_B = np.array([request.seed for request in self._requests], np.uint64)
        for request in self._requests:
            request.draws += 1
        draws_B = np.array([request.draws for request in self._requests], np.uint64)
        mixed_B = _mix(_mix(self._seeds_B) + draws_B * _GOLDEN) >> np.uint64(33)
        seeds_B = torch.randint(0, 2**31, (batch,))
        seeds_B[list(generators)] = torch.from_numpy(mixed_B.astype(np.int64))
        return seeds_B

    def logprobs(self, seed: int, count: int) -> tuple[float, ...]:
        """The `count` log-probs that the request of this seed has drawn."""
        drawn = self._by_seed[seed].logprobs
        assert len(drawn) == count, "a draw is a token"
        return tuple(drawn)

    def _of(self, generator: torch.Generator) -> _Request:
        if id(generator) not in self._known:
            request = _Request(generator)
            assert request.seed not in self._by_seed, "two requests have one seed"
            self._known[id(generator)] = self._by_seed[request.seed] = request
        return self._known[id(generator)]


def _mix(x_B: np.ndarray) -> np.ndarray:
    """SplitMix64's finisher (Steele, Lea, Flood 2014), uint64 [B]."""
    x_B = (x_B ^ (x_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_B = (x_B ^ (x_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_B: np.ndarray = x_B ^ (x_B >> np.uint64(31))
    return mixed_B


def use_seeded_sampler(worker: CPUWorker) -> SeededSampler:
    """vLLM draws row by row from each request's generator, and passes every log-prob on by itself.

    Lets a worker's sampler on CPU draw with a `SeededSampler`, which is returned.
    """
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    sampler = worker.model_runner.sampler.topk_topp_sampler
    inner, seeded = sampler.forward, SeededSampler()

    def forward(
        logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if not generators:
            tokens, returned = inner(logits, generators, k, p)
            return tokens, returned
        logprobs = apply_top_k_top_p(logits, k, p).log_softmax(dim=-1, dtype=torch.float32)
        return seeded.draw(logprobs, generators), logprobs

    sampler.forward = forward
    return seeded
