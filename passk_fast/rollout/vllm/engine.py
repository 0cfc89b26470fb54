"""The vLLM engine inside the trainer's own processes: samples responses and takes new weights.

Consecutive ranks form tensor-parallel blocks; every block is an engine of its own, so blocks run
independently of each other. All ranks of one block must make the same calls.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from passk_fast.config import RunConfig
from passk_fast.data.types import Rollout
from passk_fast.model.divisibility import check_engine_ranks
from passk_fast.rollout.engine_protocol import OpenWeights, check_prompt
from passk_fast.rollout.groups import GroupTracker, StepActions
from passk_fast.rollout.response_text import ResponseText
from passk_fast.rollout.vllm.cpu.sampler import SeededSampler, use_seeded_sampler
from passk_fast.rollout.vllm.parameters import OpenParameters
from passk_fast.rollout.vllm.patches import default_group_kept, eager_helpers
from passk_fast.rollout.vllm.routed_experts import routing_of
from passk_fast.rollout.vllm.start import prepare_environment, start_llm
from passk_fast.seeding import seed_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.outputs import CompletionOutput


class RolloutEngine:
    """One rank's part of a vLLM engine over the default process group: an `Engine`."""

    def __init__(
        self, config: RunConfig, model_dir: str, *, rank: int, world_size: int, device: str
    ) -> None:
        """Start vLLM on the weights of `model_dir`. Every rank of the world must call this.

        `device` is "cpu" or "cuda". ConfigError when the world size is not divisible by
        rollout.tensor, when keys and values do not fit in memory, or when the model cannot hold
        the longest sequence.
        """
        rollout = config.rollout
        check_engine_ranks(world_size, rollout.tensor, "rollout ranks")
        self.rank = rank
        self.world_size = world_size
        self.tensor_size = rollout.tensor
        self.tensor_rank = rank % rollout.tensor
        self.data_size = world_size // rollout.tensor
        self.data_rank = rank // rollout.tensor
        self.max_prompt_tokens = rollout.max_prompt_tokens
        self._max_response_tokens = rollout.max_response_tokens
        self._temperature = rollout.temperature
        self._stop, self._stop_token_ids = list(rollout.stop), list(rollout.stop_token_ids)
        self._on_cpu = device == "cpu"
        self._sleeps = rollout.sleep and device == "cuda"
        self._asleep = False
        self._has_weights = True
        self._opened: OpenParameters | None = None
        self._streamed_seed: int | None = None
        self.forced_length: Callable[[int, int, int], int] | None = None
        """Length in tokens of a response, by (seed, prompt key, number of the response). Benchmarks
        set it; end tokens and stop strings then end nothing."""
        prepare_environment()
        self.llm: LLM = start_llm(config, model_dir, device)
        self._seeded: SeededSampler | None = None
        if self._on_cpu and rollout.cpu_fast_path:
            (self._seeded,) = self.llm.collective_rpc(use_seeded_sampler)
        self.tokenizer: PreTrainedTokenizerBase = self.llm.get_tokenizer()
        self._text = ResponseText(self.tokenizer)
        mode = config.algorithm.routing_replay if self.tensor_rank == 0 else "off"
        self._routing = routing_of(self.llm, model_dir, mode, on_cpu=self._on_cpu)
        # Saves a tenth of decoding a small model; vLLM does it in its own engine process alone.
        gc.collect()
        gc.freeze()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_rollouts: int,
        seed: int,
        prompt_keys: Sequence[int] | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
    ) -> list[list[Rollout]]:
        """`num_rollouts` responses to each of this block's prompts (token ids), in order.

        Response n of a prompt depends on (seed, its key, n) and the weights alone: neither on the
        order of prompts nor on how they are split over ranks. `prompt_keys` are global indices,
        by default 0, 1, ... Temperature 0 is greedy, its log-probs are those at temperature 1.
        `temperature` and `max_tokens` default to rollout.temperature and max_response_tokens.
        DataError for an empty prompt or one above rollout.max_prompt_tokens.
        """
        assert self._has_weights, "wake the engine and load weights first"
        if not prompts:
            return []
        keys = range(len(prompts)) if prompt_keys is None else prompt_keys
        assert len(keys) == len(prompts), "one key per prompt"
        for key, prompt in zip(keys, prompts, strict=True):
            check_prompt(len(prompt), f"number {key}", self.max_prompt_tokens)
        seeds = [seed_for(seed, "rollout", key) for key in keys]
        params = [
            self._params(num_rollouts, first, temperature, top_p, max_tokens) for first in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._forget_requests()
        with self._eager():
            outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return self._rollouts(outputs, num_rollouts, seeds)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        tracker: GroupTracker,
        *,
        seed: int,
        prompt_keys: Sequence[int],
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> None:
        """Sample as `sample` does; pass finished responses to the tracker and apply its actions.

        The same seeds give the same responses as `sample`. All first responses are queued before
        all second ones, so that a group that is decided early leaves its last ones unstarted; on
        CPU one step earlier, so that the others find the whole prompt in the cache. In a
        tensor-parallel block the first rank's tracker decides; the other ranks' are not asked.
        With algorithm.routing_replay responses carry the experts of their tokens.
        """
        assert self._has_weights, "wake the engine and load weights first"
        self._forget_requests()
        engine = self.llm.llm_engine
        if seed != self._streamed_seed:  # so that a resumed run repeats a batch's cache hits
            self.llm.reset_prefix_cache()
            self._streamed_seed = seed
        seeds = [seed_for(seed, "rollout", key) for key in prompt_keys]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]

        def add(key: tuple[int, int]) -> None:
            p, n = key
            params = self._params(1, seeds[p] + n, temperature, top_p, None)
            if self.forced_length is not None:
                _force_length(params, self.forced_length(seed, prompt_keys[p], n))
            internal = engine.add_request(f"{p}.{n}", inputs[p], params)
            if self._routing is not None:
                self._routing.begin(f"{p}.{n}", internal)

        waiting = [(p, n) for n in range(tracker.num_rollouts) for p in range(len(prompts))]
        first = len(prompts) if self._on_cpu else len(waiting)
        for key in waiting[:first]:
            add(key)
        waiting = waiting[first:]
        with self._eager():
            busy = bool(prompts)
            while busy:
                outputs = engine.step() if engine.has_unfinished_requests() else []
                ended = [output for output in outputs if output.finished]
                for output in ended:
                    tracker.prompt_tokens += len(output.prompt_token_ids)
                    tracker.cached_tokens += output.num_cached_tokens or 0
                actions = self._agreed(tracker, ended, seeds)
                engine.abort_request([f"{p}.{n}" for p, n in actions.abort])
                dropped = set(actions.abort)
                for key in [*waiting, *actions.add]:
                    if key not in dropped:
                        add(key)
                waiting = []
                busy = engine.has_unfinished_requests() or actions.waiting
        if self._routing is not None:
            self._routing.forget()

    def _agreed(
        self, tracker: GroupTracker, ended: list[RequestOutput], seeds: Sequence[int]
    ) -> StepActions:
        """The actions of the block's first rank, on all of its ranks."""
        actions: StepActions | None = None
        if self.tensor_rank == 0:
            keys = [_key(output.request_id) for output in ended]
            own = [seeds[p] + n for p, n in keys]
            rollouts = [group[0] for group in self._rollouts(ended, 1, own)]
            if self._routing is not None:
                experts = map(self._routing.end, ended)
                rollouts = [
                    replace(r, routed_experts=e) for r, e in zip(rollouts, experts, strict=True)
                ]
            actions = tracker.step(list(zip(keys, rollouts, strict=True)))
        if self.tensor_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            actions = get_tp_group().broadcast_object(actions, src=0)
        assert actions is not None
        return actions

    def open_parameters(self) -> OpenParameters:
        """This rank's parameters, to be filled; `close_parameters` must follow."""
        assert not self._asleep, "wake the engine before loading weights"
        opened: OpenParameters
        (opened,) = self.llm.apply_model(partial(OpenParameters, on_cpu=self._on_cpu))
        self._opened, self._has_weights = opened, False
        return opened

    def close_parameters(self, opened: OpenWeights, *, probe: bool = False) -> None:
        """Use the parameters that have been filled; cached prefixes are dropped.

        `probe` checks that repacked layers compute with what they were given (DivergedError).
        """
        assert self._opened is not None, "open the parameters first"
        assert opened is self._opened, "parameters of another engine, or opened earlier"
        self._opened.close(probe=probe)
        self._opened = None
        self.llm.reset_prefix_cache()
        self._has_weights = True

    def sleep(self) -> None:
        """On a GPU with rollout.sleep: free weights, keys and values. Elsewhere nothing happens.

        Weights are discarded: after `wake_up`, new weights must come before `sample`.
        """
        if self._sleeps and not self._asleep:
            self.llm.sleep(level=2)
            self._asleep, self._has_weights = True, False

    def wake_up(self) -> None:
        """Take the memory back after `sleep`; nothing happens to an engine that is awake."""
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Shut the engine down; the default process group stays, another engine may start."""
        with default_group_kept():
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()

    def _forget_requests(self) -> None:
        """No request is under way."""
        if self._seeded is not None:
            self._seeded.forget()

    def _eager(self) -> AbstractContextManager[None]:
        return eager_helpers() if self._on_cpu else nullcontext()

    def _params(
        self,
        num_rollouts: int,
        seed: int,
        temperature: float | None,
        top_p: float,
        max_tokens: int | None,
    ) -> SamplingParams:
        """vLLM seeds response n of a request with seed + n."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = temperature == 0
        kept = self._seeded is not None and not greedy  # the sampler keeps the log-probs itself
        return SamplingParams(
            # Greedy responses are all the same: one is sampled and repeated.
            n=1 if greedy else num_rollouts,
            seed=None if greedy else seed,
            temperature=self._temperature if temperature is None else temperature,
            top_p=1.0 if greedy else top_p,
            max_tokens=self._max_response_tokens if max_tokens is None else max_tokens,
            logprobs=None if kept else 0,
            flat_logprobs=True,
            stop=self._stop,
            stop_token_ids=self._stop_token_ids,
            # Only to look for stop strings, in the text as it is judged.
            detokenize=bool(self._stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            skip_clone=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _rollouts(
        self, outputs: list[RequestOutput], num_rollouts: int, seeds: Sequence[int]
    ) -> list[list[Rollout]]:
        """vLLM's outputs as Rollouts [P][N]; all texts are decoded in one call.

        Completion n of an output has the seed of the output + n.
        """
        if not outputs:
            return []
        completions = [
            (completion, first + completion.index)
            for output, first in zip(outputs, seeds, strict=True)
            for completion in output.outputs
        ]
        ends = [_ends_with_token(completion) for completion, _ in completions]
        texts = self._text([completion.token_ids for completion, _ in completions], ends)
        rollouts = [
            Rollout(
                token_ids=tuple(completion.token_ids),
                logprobs=self._logprobs(completion, seed),
                text=text,
                finished=completion.finish_reason == "stop",
            )
            for (completion, seed), text in zip(completions, texts, strict=True)
        ]
        size = len(rollouts) // len(outputs)
        groups = [rollouts[i : i + size] for i in range(0, len(rollouts), size)]
        return groups if size == num_rollouts else [group * num_rollouts for group in groups]

    def _logprobs(self, completion: CompletionOutput, seed: int) -> tuple[float, ...]:
        if completion.logprobs is not None:
            return tuple(completion.logprobs.logprobs)
        assert self._seeded is not None
        return self._seeded.logprobs(seed, len(completion.token_ids))


def _ends_with_token(completion: CompletionOutput) -> bool:
    """Whether an end token, and not a stop string, ended it; vLLM names the string."""
    return completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)


def _force_length(params: SamplingParams, length: int) -> None:
    """Let nothing else end the response."""
    params.max_tokens, params.ignore_eos = length, True
    params.stop, params.stop_token_ids, params.detokenize = [], [], False


def _key(request_id: str) -> tuple[int, int]:
    prompt, number = request_id.split(".")
    return int(prompt), int(number)
