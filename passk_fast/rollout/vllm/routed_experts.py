"""The experts that vLLM chose for every token that a response ran through the model.

On a GPU vLLM keeps them itself. Its CPU runner cannot, so there they are kept here, by the slot of
a token's key and value in the cache: a prefix-cache hit then finds the experts of its tokens too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from vllm import LLM, RequestOutput
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker


class Routing(Protocol):
    """Where the engine asks for the experts of a response."""

    def begin(self, request_id: str, internal_id: str) -> None:
        """A request was added, which vLLM knows by another name inside."""

    def end(self, output: RequestOutput) -> np.ndarray:
        """The experts [prompt + response - 1, M, K] of a request that ended in the last step."""

    def forget(self) -> None:
        """No request is running: drop what aborted ones left."""


class ReturnedRouting:
    """GPU: vLLM returns the experts of all layers with a response."""

    def __init__(self, shape: ModelShape) -> None:
        self._dtype = shape.expert_index_dtype

    def begin(self, request_id: str, internal_id: str) -> None:
        """vLLM needs no help."""

    def end(self, output: RequestOutput) -> np.ndarray:
        completion = output.outputs[0]
        rows = len(output.prompt_token_ids) + len(completion.token_ids) - 1
        found = completion.routed_experts
        if found is None or len(found) < rows:
            have = "none" if found is None else f"those of {len(found)} tokens"
            raise RuntimeError(
                f"vLLM returned {have} instead of the experts of {rows} tokens "
                "(algorithm.routing_replay)."
            )
        experts: np.ndarray = found[:rows].astype(self._dtype)
        return experts

    def forget(self) -> None:
        """Nothing is kept."""


class CachedRouting:
    """CPU: the experts of every token in vLLM's cache of keys and values.

    M x K bytes (twice that above 256 experts) for each of the cache's tokens.
    """

    def __init__(self, llm: LLM, shape: ModelShape) -> None:
        import torch

        (self._runner,) = llm.collective_rpc(_model_runner)
        spec = self._runner.kv_cache_config
        (group,) = spec.kv_cache_groups  # one: the models here have full attention throughout
        self._block = group.kv_cache_spec.block_size
        layers, top_k = shape.num_layers, shape.experts_per_token
        dtype = torch.from_numpy(np.empty(0, shape.expert_index_dtype)).dtype
        # The last row takes what vLLM gives no place: slot -1 is padding.
        self._experts_SMK = torch.zeros(
            (spec.num_blocks * self._block + 1, layers, top_k), dtype=dtype
        )
        self._internal: dict[str, str] = {}
        (bound,) = llm.apply_model(partial(capture_choices, capture=self._capture))
        assert bound == layers, f"vLLM has {bound} MoE layers in {layers} layers"

    def begin(self, request_id: str, internal_id: str) -> None:
        self._internal[request_id] = internal_id

    def end(self, output: RequestOutput) -> np.ndarray:
        # vLLM forgets a request's blocks, and gives them away, in the next step.
        state = self._runner.requests[self._internal.pop(output.request_id)]
        rows = len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1
        blocks = np.asarray(state.block_ids[0], np.int64)
        slots = (blocks[:, None] * self._block + np.arange(self._block)).ravel()[:rows]
        assert len(slots) == rows, "a token without a place in the cache"
        experts: np.ndarray = self._experts_SMK.numpy()[slots]
        return experts

    def forget(self) -> None:
        self._internal.clear()

    def _capture(self, layer: int, experts: Tensor) -> None:
        """Keep what one layer chose for the tokens of the running step, [tokens, K]."""
        from vllm.forward_context import get_forward_context

        slots = get_forward_context().slot_mapping
        if not slots:
            return  # a trial run without a cache
        assert isinstance(slots, dict), "vLLM cut the step in two"
        slot_of_row = next(iter(slots.values()))
        self._experts_SMK[slot_of_row, layer] = experts.to(self._experts_SMK.dtype)


def _model_runner(worker: CPUWorker) -> CPUModelRunner:
    return worker.model_runner


def capture_choices(model: nn.Module, capture: Callable[[int, Tensor], None]) -> int:
    """vLLM's CPU runner does not return the experts that its routers choose.

    Has `capture(layer, experts)` called whenever an MoE layer has chosen, with int [tokens, K];
    returns the number of layers. ConfigError where the choice happens inside a kernel.
    """
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    runners = [module for module in model.modules() if isinstance(module, MoERunner)]
    for layer, runner in enumerate(runners):
        if runner.is_monolithic or not isinstance(runner.router, BaseRouter):
            raise ConfigError(
                "algorithm.routing_replay: vLLM's experts on this CPU choose inside their kernel, "
                "where the choice cannot be read. Take 'off'."
            )
        runner.router.set_capture_fn(partial(capture, layer))
    return len(runners)


def routing_of(llm: LLM, model_dir: str, mode: str, *, on_cpu: bool) -> Routing | None:
    """Where to ask the engine `llm` of the model in `model_dir` for experts; `mode` "off": None.

    On a GPU `llm` must have been started with `enable_return_routed_experts`. ConfigError for a
    dense model.
    """
    if mode == "off":
        return None
    shape = ModelShape.read(model_dir)
    shape.check_routing_replay(mode)
    return CachedRouting(llm, shape) if on_cpu else ReturnedRouting(shape)
