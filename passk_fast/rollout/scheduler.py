"""vLLM's scheduler with a short way for the token that needs no block of keys and values.

In decoding that is all but one token in a block, for which vLLM asks five managers in turn: a
tenth of decoding a small model on CPU.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request


class ShortScheduler(Scheduler):
    """Schedules exactly as vLLM's own; models with one kind of layer, full attention."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        coordinator = self.kv_cache_manager.coordinator
        if type(coordinator) is UnitaryKVCacheCoordinator:
            (manager,) = coordinator.single_type_managers
            if type(manager) is FullAttentionManager:
                self._take_short_way(manager.block_size)

    def _take_short_way(self, block_size: int) -> None:
        slots = self.kv_cache_manager
        allocate, nothing = slots.allocate_slots, slots.empty_kv_cache_blocks

        def allocate_slots(request: Request, tokens: int, *args: Any, **kwargs: Any) -> Any:
            # The token goes into a block that the request has, and does not fill it: nothing is
            # allocated, freed or put into the prefix cache.
            if (
                tokens == 1
                and not args
                and kwargs == _DECODING
                and 0 < request.num_computed_tokens % block_size < block_size - 1
                and request.num_computed_tokens >= request.num_prompt_tokens
            ):
                return nothing
            return allocate(request, tokens, *args, **kwargs)

        slots.allocate_slots = allocate_slots


_DECODING = {"num_lookahead_tokens": 0}
"""What vLLM passes for a running request without speculation."""
