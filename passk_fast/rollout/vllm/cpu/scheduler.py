"""vLLM's scheduler with a short way for the token that neither needs a block nor ends a response.

In decoding that is nearly every token. vLLM looks at each from a dozen sides, asks five managers
for the room that it has, and carries it on its own to the request's output: a quarter of decoding
a small model on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

_LIMITS = ("max_num_running_reqs", "max_num_active_reqs", "max_num_scheduled_tokens")
"""The scheduler's, of requests and of tokens, a request's token a step"""


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request that has its first token, and of which only the end is wanted."""

    request: Request
    ends: frozenset[int]
    """tokens that end the response"""
    last: int
    """tokens, prompt and response, at which it ends"""
    held: list[int] = field(default_factory=list)
    """tokens that have not been put out"""


class FastPathScheduler(Scheduler):
    """Schedules exactly as vLLM's own; models with one kind of layer, full attention."""

    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._decoding: dict[str, _Decoding] = {}
        coordinator = self.kv_cache_manager.coordinator
        managers = coordinator.single_type_managers
        self._block_size = managers[0].block_size
        others = (self.connector, self.ec_connector, self.aux_output_connector, self.lora_config)
        self._has_short_way = (
            type(coordinator) is UnitaryKVCacheCoordinator
            and type(managers[0]) is FullAttentionManager
            and self.hash_block_size == self._block_size
            and not any(others)
            and not self.num_spec_tokens
            and not self.use_pp
            and not self.scheduler_config.async_scheduling
        )

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """vLLM's way for the requests that need a block, the short one for the others."""
        running = self.running
        short, long = self._split()
        if not short:
            return super().schedule(*args, **kwargs)
        limits = {name: getattr(self, name) for name in _LIMITS}
        self.running, count = long, len(long)
        for name, limit in limits.items():
            setattr(self, name, limit - len(short))
        try:
            scheduled: SchedulerOutput = super().schedule(*args, **kwargs)
        finally:
            for name, limit in limits.items():
                setattr(self, name, limit)
            self.running = running + self.running[count:]  # behind them those that begin
        self._add(scheduled, short)
        return scheduled

    def _split(self) -> tuple[list[Request], list[Request]]:
        """The running requests whose next token goes into a block that they have and does not fill
        it, so that nothing is allocated, freed or put into the prefix cache; and the others.

        None are the first when another might have to be preempted.
        """
        short: list[Request] = []
        long: list[Request] = []
        if not self._has_short_way or len(self.running) > self.max_num_scheduled_tokens:
            return short, long
        size, seen = self._block_size, self.prev_step_scheduled_req_ids
        for request in self.running:
            at, name = request.num_computed_tokens, request.request_id
            if request.num_tokens != at + 1 or name not in seen:
                return [], []
            within = name in self._decoding and 0 < at % size < size - 1
            (short if within else long).append(request)
        if self.kv_cache_manager.block_pool.get_num_free_blocks() < len(long):
            return [], []
        return short, long

    def _add(self, scheduled: SchedulerOutput, short: list[Request]) -> None:
        """A token of each of these to what a step computes."""
        data = scheduled.scheduled_cached_reqs
        names = [request.request_id for request in short]
        data.req_ids += names
        data.new_block_ids += [None] * len(short)
        data.num_computed_tokens += [request.num_computed_tokens for request in short]
        data.num_output_tokens += [request.num_output_tokens for request in short]
        scheduled.num_scheduled_tokens.update(dict.fromkeys(names, 1))
        scheduled.total_num_scheduled_tokens += len(short)
        self.prev_step_scheduled_req_ids.update(names)
        for request in short:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1

    def update_from_output(self, scheduled: SchedulerOutput, output: Any) -> Any:
        """Tokens that end nothing stay with their request until one does, or vLLM puts one out."""
        if not self._has_short_way or output.num_nans_in_logits:
            return super().update_from_output(scheduled, output)
        long: dict[str, int] = {}
        held: dict[str, list[int]] = {}
        tokens, rows = output.sampled_token_ids, output.req_id_to_index
        for name, count in scheduled.num_scheduled_tokens.items():
            known = self._decoding.get(name)
            if known is None:
                long[name] = count
                continue
            request, (token,) = known.request, tokens[rows[name]]
            ends = token in known.ends or request.num_tokens + 1 >= known.last
            if ends or count != 1 or request.num_stale_output_tokens:
                long[name] = count
                held[name], known.held = known.held, []
                continue
            request.num_in_flight_tokens -= 1
            self._append(request, token)
            known.held.append(token)
        result = super().update_from_output(replace(scheduled, num_scheduled_tokens=long), output)
        for outputs in result.values():
            for one in outputs.outputs:
                one.new_token_ids = held.get(one.request_id, []) + one.new_token_ids
        for name in long.keys() - held.keys():
            self._watch(name)
        return result

    def _append(self, request: Request, token: int) -> None:
        """A token to a response; blocks are hashed when there is one more, not at every token."""
        request._output_token_ids.append(token)
        request._all_token_ids.append(token)
        if not len(request._all_token_ids) % self._block_size:
            request.update_block_hashes()

    def _watch(self, name: str) -> None:
        """From its first token on a request takes the short way, if nothing but its end counts."""
        request = self.requests.get(name)
        if request is None or request.is_finished() or not request.num_output_tokens:
            return
        params = request.sampling_params
        if (
            params is not None
            and params.output_kind == RequestOutputKind.FINAL_ONLY
            and params.num_logprobs is None
            and params.prompt_logprobs is None
            and params.repetition_detection is None
            and not params.min_tokens
            and not request.use_structured_output
            and not request.has_encoder_inputs
            and not request.resumable
        ):
            ends = {*(params.stop_token_ids or ()), params.eos_token_id} - {None}
            last = min(self.max_model_len, request.num_prompt_tokens + request.max_tokens)
            self._decoding[name] = _Decoding(request, frozenset(ends), last)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._decoding.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)
