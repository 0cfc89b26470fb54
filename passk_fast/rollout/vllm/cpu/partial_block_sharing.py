"""Responses to one prompt share its last, begun block of keys and values too: by a copy.

vLLM's prefix cache shares whole blocks. On CPU a block is 32 tokens, so that each of 16 responses
to a prompt of 50 computes 18 of its tokens anew: as many as a short response has.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from passk_fast.rollout.vllm.cpu.scheduler import FastPathScheduler


class SharingScheduler(FastPathScheduler):
    """A response begins with all of its prompt but the last token, once another of its prompt runs.

    The copy itself is vLLM's, which it makes for models whose caches end within a block. Routed
    experts by slot of the cache are not copied: not for algorithm.routing_replay.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._by_prompt: dict[Hashable, dict[str, Request]] = {}
        """Responses that run, by prompt and name: their prompts are in the cache."""
        self._prompts: dict[str, Hashable] = {}
        if self._has_short_way:
            self._computed = self.kv_cache_manager.get_computed_blocks
            self.kv_cache_manager.get_computed_blocks = self._with_tail

    def _with_tail(self, request: Request) -> tuple[Any, int, int]:
        """vLLM's hit of whole blocks and, where it is all of the prompt's, the block behind it."""
        blocks, count, boundary = self._computed(request)
        wanted = request.num_prompt_tokens - 1
        begins = count == self._whole(request) < wanted and not request.num_output_tokens
        if not begins or not self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            return blocks, count, boundary
        tail = self._tail(request)
        if tail is None:
            return blocks, count, boundary
        joined = ([*blocks.blocks[0], tail],)
        return self.kv_cache_manager.create_kv_cache_blocks(joined), wanted, boundary

    def _tail(self, request: Request) -> KVCacheBlock | None:
        """The block that holds the end of this prompt, of a response that runs."""
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        others = self._by_prompt.get(self._prompt(request))
        if not others:
            return None
        blocks: list[KVCacheBlock] = manager.req_to_blocks[next(iter(others))]
        return blocks[self._whole(request) // self._block_size]

    def _whole(self, request: Request) -> int:
        """Tokens in whole blocks before the prompt's last token, which is always computed."""
        return (request.num_prompt_tokens - 1) // self._block_size * self._block_size

    def _prompt(self, request: Request) -> Hashable:
        whole = self._whole(request)
        before = request.block_hashes[whole // self._block_size - 1] if whole else None
        return before, tuple(request.all_token_ids[whole : request.num_prompt_tokens])

    def _watch(self, name: str) -> None:
        if name in self._prompts:  # one whose every token goes vLLM's way
            return
        super()._watch(name)
        request = self.requests.get(name)
        if request is None or request.is_finished() or not request.num_output_tokens:
            return
        if self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            self._prompts[name] = self._prompt(request)
            self._by_prompt.setdefault(self._prompts[name], {})[name] = request

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._forget(request)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._forget(request)
        return super()._free_request(request, *args, **kwargs)

    def _forget(self, request: Request) -> None:
        prompt = self._prompts.pop(request.request_id, None)
        if prompt is not None:
            del self._by_prompt[prompt][request.request_id]
            if not self._by_prompt[prompt]:
                del self._by_prompt[prompt]
