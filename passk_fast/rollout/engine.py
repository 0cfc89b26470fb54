"""The vLLM engine inside the trainer's own processes: samples responses and takes new weights.

Consecutive ranks form tensor-parallel blocks; every block is an engine of its own, so blocks need
no lock step with each other. All ranks of one block must make the same calls.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passk_fast.batch import Rollout
from passk_fast.config import RunConfig
from passk_fast.errors import ConfigError, DataError
from passk_fast.seeding import seed_for

if TYPE_CHECKING:
    import torch
    from vllm import LLM, RequestOutput, SamplingParams

_GIB = 1 << 30
_ENVIRONMENT = {
    # The engine must run in this process: external_launcher asks for it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
_NO_MEMORY = ("kv cache", "cache blocks", "gpu memory utilization", "out of memory")


def prepare_environment() -> None:
    """Set vLLM's environment variables before its first import; keeps what the user has set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class RolloutEngine:
    """One rank's part of a vLLM engine over the default process group."""

    def __init__(
        self, config: RunConfig, model_dir: str, *, rank: int, world_size: int, device: str
    ) -> None:
        """Start vLLM on the weights of `model_dir`. Every rank of the world must call this.

        `device` is "cpu" or "cuda". ConfigError when the ranks do not divide into blocks of
        rollout.tensor, when keys and values do not fit in memory, or when the model cannot hold
        the longest sequence.
        """
        rollout = config.rollout
        if world_size % rollout.tensor:
            raise ConfigError(
                f"World size {world_size} is not divisible by rollout.tensor = {rollout.tensor}."
            )
        self.rank = rank
        self.world_size = world_size
        self.tensor_size = rollout.tensor
        self.tensor_rank = rank % rollout.tensor
        self.data_size = world_size // rollout.tensor
        self.data_rank = rank // rollout.tensor
        self.max_prompt_tokens = rollout.max_prompt_tokens
        self._max_response_tokens = rollout.max_response_tokens
        self._temperature = rollout.temperature
        self._sleeps = rollout.sleep and device == "cuda"
        self._asleep = False
        self._has_weights = True
        prepare_environment()
        self.llm: LLM = _start(config, model_dir, device)
        self.tokenizer: Any = self.llm.get_tokenizer()
        self._stop_token_ids = _stop_token_ids(self.llm)

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
        assert self._has_weights and not self._asleep, "wake the engine and load weights first"
        keys = range(len(prompts)) if prompt_keys is None else prompt_keys
        assert len(keys) == len(prompts), "one key a prompt"
        for key, prompt in zip(keys, prompts, strict=True):
            check_prompt(len(prompt), f"number {key}", self.max_prompt_tokens)
        params = [
            self._params(num_rollouts, seed_for(seed, "rollout", key), temperature, top_p, max_tokens)
            for key in keys
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return self._rollouts(self.llm.generate(inputs, params, use_tqdm=False))

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights in place with full tensors under Hugging Face names.

        Every rank of a block passes all tensors, in the same order. Cached prefixes are dropped.
        """
        assert not self._asleep, "wake the engine before loading weights"
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        self.llm.reset_prefix_cache()
        self._has_weights = True

    def sleep(self) -> None:
        """GPU with rollout.sleep: free weights, keys and values. Elsewhere nothing happens.

        Weights are discarded: after `wake_up`, `load_weights` must come before `sample`.
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
        from vllm.distributed.parallel_state import destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        destroy_model_parallel()
        gc.collect()

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
        return SamplingParams(
            # Greedy responses are all alike: one is sampled and repeated.
            n=1 if greedy else num_rollouts,
            seed=None if greedy else seed,
            temperature=self._temperature if temperature is None else temperature,
            top_p=1.0 if greedy else top_p,
            max_tokens=self._max_response_tokens if max_tokens is None else max_tokens,
            stop_token_ids=self._stop_token_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            skip_clone=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
