"""vLLM's scheduler with a fast path for tokens that neither need a new block nor end a response.

In decoding nearly every token is one. vLLM repeats block allocation and output bookkeeping for
every token, which takes a quarter of the time of decoding a small model on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput

_LIMITS = ("max_num_running_reqs", "max_num_active_reqs", "max_num_scheduled_tokens")
"""The scheduler's limits per step; a request on the fast path takes one of each."""


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request that has its first token, and whose outputs are wanted at its end alone."""

    request: Request
    ends: frozenset[int]
    """Tokens that end the response."""
    last: int
    """Number of tokens, prompt and response together, at which it ends."""
    held: list[int] = field(default_factory=list)
    """Tokens that have not been passed on as outputs."""


class FastPathScheduler(Scheduler):
    """vLLM repeats block allocation and output bookkeeping for every token of every request.

    This one schedules exactly what vLLM's own does, with less work for most tokens, where all
    layers have full attention; for other models it is vLLM's own.
    """

    running: list[Request]

    fast_path: bool
    """Whether tokens may take the fast path: so where the model and vLLM's options allow it."""
    fast_path_tokens: int
    """Tokens that have taken it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._decoding: dict[str, _Decoding] = {}
        coordinator = self.kv_cache_manager.coordinator
        managers = coordinator.single_type_managers
        self._block_size: int = managers[0].block_size
        others = (self.connector, self.ec_connector, self.aux_output_connector, self.lora_config)
        self.fast_path_tokens = 0
        self.fast_path = (
            type(coordinator) is UnitaryKVCacheCoordinator
            and type(managers[0]) is FullAttentionManager
            and self.hash_block_size == self._block_size
            and not any(others)
            and not self.num_spec_tokens
            and not self.use_pp
            and not self.scheduler_config.async_scheduling
        )

    @property
    def num_remembered(self) -> int:
        """Requests that the fast path knows: none once all have ended."""
        return len(self._decoding)

    def schedule(self, *args: object, **kwargs: object) -> SchedulerOutput:
        """Schedule a step: requests that need a block as vLLM does, the others on the fast path."""
        running = self.running
        fast, full = self._split()
        if not fast:
            return super().schedule(*args, **kwargs)
        limits = {name: getattr(self, name) for name in _LIMITS}
        self.running, count = full, len(full)
        for name, limit in limits.items():
            setattr(self, name, limit - len(fast))
        try:
            scheduled = super().schedule(*args, **kwargs)
        finally:
            for name, limit in limits.items():
                setattr(self, name, limit)
            self.running = running + self.running[count:]  # behind them the requests that start
        self._add(scheduled, fast)
        return scheduled

    def _split(self) -> tuple[list[Request], list[Request]]:
        """The running requests for the fast path, and the others.

        The next token of the first goes into a block that they have and does not fill it, so that
        nothing is allocated, freed or put into the prefix cache. There are none when vLLM might
        have to preempt a request.
        """
        fast: list[Request] = []
        full: list[Request] = []
        if not self.fast_path or len(self.running) > self.max_num_scheduled_tokens:
            return fast, full
        size, seen = self._block_size, self.prev_step_scheduled_req_ids
        for request in self.running:
            at, name = request.num_computed_tokens, request.request_id
            if request.num_tokens != at + 1 or name not in seen:
                return [], []
            within = name in self._decoding and 0 < at % size < size - 1
            (fast if within else full).append(request)
        if self.kv_cache_manager.block_pool.get_num_free_blocks() < len(full):
            return [], []
        return fast, full

    def _add(self, scheduled: SchedulerOutput, fast: list[Request]) -> None:
        """Add one token of each of these requests to what a step computes."""
        data = scheduled.scheduled_cached_reqs
        names = [request.request_id for request in fast]
        data.req_ids += names
        data.new_block_ids += [None] * len(fast)
        data.num_computed_tokens += [request.num_computed_tokens for request in fast]
        data.num_output_tokens += [request.num_output_tokens for request in fast]
        scheduled.num_scheduled_tokens.update(dict.fromkeys(names, 1))
        scheduled.total_num_scheduled_tokens += len(fast)
        self.prev_step_scheduled_req_ids.update(names)
        self.fast_path_tokens += len(fast)
        for request in fast:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1

    def update_from_output(
        self, scheduled: SchedulerOutput, output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Buffer tokens that do not end their response in the request; flush them when vLLM puts
        one out."""
        if not self.fast_path or output.num_nans_in_logits:
            outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduled, output)
            return outputs
        full: dict[str, int] = {}
        held: dict[str, list[int]] = {}
        tokens, rows = output.sampled_token_ids, output.req_id_to_index
        for name, count in scheduled.num_scheduled_tokens.items():
            known = self._decoding.get(name)
            if known is None:
                full[name] = count
                continue
            request, (token,) = known.request, tokens[rows[name]]
            ends = token in known.ends or request.num_tokens + 1 >= known.last
            if ends or count != 1 or request.num_stale_output_tokens:
                full[name] = count
                held[name], known.held = known.held, []
                continue
            request.num_in_flight_tokens -= 1
            self._append(request, token)
            known.held.append(token)
        outputs = super().update_from_output(replace(scheduled, num_scheduled_tokens=full), output)
        for of_client in outputs.values():
            for one in of_client.outputs:
                one.new_token_ids = held.get(one.request_id, []) + one.new_token_ids
        for name in full.keys() - held.keys():
            self._remember(name)
        return outputs

    def _append(self, request: Request, token: int) -> None:
        """Append a token to a response; blocks are hashed once each, not at every token."""
        request._output_token_ids.append(token)
        request._all_token_ids.append(token)
        if not len(request._all_token_ids) % self._block_size:
            request.update_block_hashes()

    def _remember(self, name: str) -> None:
        """From its first token on a request takes the fast path, if only its end matters."""
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
            and not params.stop  # looked for in the text of every token
            and not request.use_structured_output
            and not request.has_encoder_inputs
            and not request.resumable
        ):
            ends = {*(params.stop_token_ids or ()), params.eos_token_id} - {None}
            last = min(self.max_model_len, request.num_prompt_tokens + request.max_tokens)
            self._decoding[name] = _Decoding(request, frozenset(ends), last)

    def _free_request(self, request: Request, *args: object, **kwargs: object) -> object:
        self._decoding.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)
