"""Responses to one prompt share its last, partially filled block of keys and values too.

vLLM's prefix cache shares whole blocks. On CPU a block is 32 tokens, so each of 16 responses to a
prompt of 50 tokens computes 18 of them again: as many as a short response has.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from passk_fast.rollout.vllm.cpu.scheduler import FastPathScheduler

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks


class PartialBlockSharingScheduler(FastPathScheduler):
    """vLLM's prefix cache shares whole blocks alone, so every response computes its prompt's end.

    Copies the prompt's partially filled last block to each response, once another response to the
    same prompt is running: a response then starts with all of its prompt but the last token. The
    copy is vLLM's own, which it makes for models whose caches end within a block. Experts that are
    kept by cache slot are not copied: not for algorithm.routing_replay.
    """

    share_partial_blocks: bool
    """Whether responses copy the last block of their prompt: so where there is a fast path."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._by_prompt: dict[Hashable, dict[str, Request]] = {}
        """Running responses by prompt and name: their prompts are in the cache."""
        self._prompts: dict[str, Hashable] = {}
        self.share_partial_blocks = self.fast_path
        self._computed = self.kv_cache_manager.get_computed_blocks
        self.kv_cache_manager.get_computed_blocks = self._with_partial_block

    @property
    def num_remembered(self) -> int:
        return super().num_remembered + len(self._prompts) + len(self._by_prompt)

    def _with_partial_block(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """vLLM's hit of whole blocks and, where those are all of the prompt's, the next block."""
        blocks, count, boundary = self._computed(request)
        wanted = request.num_prompt_tokens - 1
        begins = count == self._whole(request) < wanted and not request.num_output_tokens
        if not (self.share_partial_blocks and begins):
            return blocks, count, boundary
        if not self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            return blocks, count, boundary
        partial = self._partial_block(request)
        if partial is None:
            return blocks, count, boundary
        joined = ([*blocks.blocks[0], partial],)
        return self.kv_cache_manager.create_kv_cache_blocks(joined), wanted, boundary

    def _partial_block(self, request: Request) -> KVCacheBlock | None:
        """The block of a running response that holds the end of this request's prompt."""
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        others = self._by_prompt.get(self._prompt(request))
        if not others:
            return None
        blocks: list[KVCacheBlock] = manager.req_to_blocks[next(iter(others))]
        return blocks[self._whole(request) // self._block_size]

    def _whole(self, request: Request) -> int:
        """Tokens in whole blocks before the prompt's last token, which is always computed."""
        tokens: int = request.num_prompt_tokens
        return (tokens - 1) // self._block_size * self._block_size

    def _prompt(self, request: Request) -> Hashable:
        whole = self._whole(request)
        before = request.block_hashes[whole // self._block_size - 1] if whole else None
        return before, tuple(request.all_token_ids[whole : request.num_prompt_tokens])

    def _remember(self, name: str) -> None:
        if name in self._prompts:  # a request that never takes the fast path comes here each time
            return
        super()._remember(name)
        request = self.requests.get(name)
        if request is None or request.is_finished() or not request.num_output_tokens:
            return
        if self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            self._prompts[name] = self._prompt(request)
            self._by_prompt.setdefault(self._prompts[name], {})[name] = request

    def _preempt_request(self, request: Request, *args: object, **kwargs: object) -> None:
        self._forget(request)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: object, **kwargs: object) -> object:
        self._forget(request)
        return super()._free_request(request, *args, **kwargs)

    def _forget(self, request: Request) -> None:
        prompt = self._prompts.pop(request.request_id, None)
        if prompt is not None:
            del self._by_prompt[prompt][request.request_id]
            if not self._by_prompt[prompt]:
                del self._by_prompt[prompt]
