"""vLLM inside the trainer's own processes: sampling with log-probs, weights reloaded in place.

The world's ranks form consecutive blocks of `rollout.tensor`; every block is one engine, and the
blocks are data-parallel replicas that know nothing of one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from passk_fast.batch import Rollout
from passk_fast.config import RunConfig
from passk_fast.errors import ConfigError, DataError
from passk_fast.seeding import seed_for


def prepare_environment(config: RunConfig) -> None:
    """Variables that vLLM reads at import; what the user has set stays. Call before importing it."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.rollout.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer shares these threads
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_LOG_LEVEL": "ERROR",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class RolloutEngine:
    """One rank's part of a vLLM engine. Every rank of a tensor-parallel block calls the same."""

    def __init__(self, config: RunConfig, model_dir: str, *, rank: int, world_size: int) -> None:
        """Start vLLM over the existing default process group.

        Raises:
            ConfigError: vLLM cannot start, for instance because the cache does not fit.
        """
        prepare_environment(config)
        from vllm import LLM
        from vllm.platforms import current_platform

        settings = config.rollout
        self._settings = settings
        self.data_rank = rank // settings.tensor
        self.data_size = world_size // settings.tensor
        self.tensor_rank = rank % settings.tensor
        on_cpu = current_platform.is_cpu()
        self._sleeps = settings.sleep and not on_cpu
        self._awake = True
        extra: dict[str, Any] = {}
        if not on_cpu:
            extra["gpu_memory_utilization"] = settings.gpu_memory_utilization
            extra["enable_sleep_mode"] = self._sleeps
        try:
            self._llm = LLM(
                model=model_dir,
                dtype=config.model.dtype,
                tensor_parallel_size=settings.tensor,
                distributed_executor_backend="external_launcher",
                max_model_len=settings.max_prompt_tokens + settings.max_response_tokens,
                max_num_seqs=settings.max_num_seqs,
                enable_prefix_caching=settings.prefix_caching,
                enforce_eager=on_cpu or settings.enforce_eager,
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                seed=config.seed,
                disable_log_stats=True,
                **extra,
            )
        except (ValueError, RuntimeError) as error:
            field = "rollout.kv_cache_gib" if on_cpu else "rollout.gpu_memory_utilization"
            raise ConfigError(
                f"vLLM could not start on {model_dir}: {error} If memory is short, change {field}."
            ) from error
        self._tokenizer = self._llm.get_tokenizer()

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
        """N responses to each of this engine's prompts (token ids).

        `prompt_keys` are the prompts' global numbers: with `seed` they determine the samples, so a
        prompt gets the same ones on any data-parallel split. Log-probs are in nats, under the
        distribution that was sampled from; the end token is part of a response.

        Raises:
            DataError: a prompt is longer than `rollout.max_prompt_tokens`.
        """
        if not prompts:
            return []
        from vllm import SamplingParams

        limit = self._settings.max_prompt_tokens
        keys = range(len(prompts)) if prompt_keys is None else prompt_keys
        for key, prompt in zip(keys, prompts, strict=True):
            if len(prompt) > limit:
                raise DataError(
                    f"prompt {key} has {len(prompt)} tokens, above rollout.max_prompt_tokens = "
                    f"{limit}. Raise the limit or drop the prompt."
                )
        params = [
            SamplingParams(
                n=num_rollouts,
                temperature=self._settings.temperature if temperature is None else temperature,
                top_p=top_p,
                max_tokens=max_tokens or self._settings.max_response_tokens,
                seed=seed_for(seed, "rollout", key),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for key in keys
        ]
        inputs: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return self._rollouts(outputs)

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of responses, special tokens left out."""
        return self._tokenizer.batch_decode(list(responses), skip_special_tokens=True)

    def _rollouts(self, outputs: list[Any]) -> list[list[Rollout]]:
        samples = [c for out in outputs for c in sorted(out.outputs, key=lambda c: c.index)]
        texts = iter(self.decode([c.token_ids for c in samples]))
        return [
            [
                Rollout(
                    token_ids=tuple(c.token_ids),
                    logprobs=tuple(c.logprobs.logprobs),
                    text=next(texts),
                    finished=c.finish_reason == "stop",
                )
                for c in sorted(out.outputs, key=lambda c: c.index)
            ]
            for out in outputs
        ]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights by full tensors under Hugging Face names; forgets cached prefixes."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(named_tensors)})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached prefixes of the old weights")

    def sleep(self) -> None:
        """GPU: give the memory of weights and cache to the trainer. CPU: nothing."""
        if self._sleeps and self._awake:
            self._llm.sleep(level=2)
            self._awake = False

    def wake_up(self) -> None:
        """GPU: take the memory back; weights must be loaded before sampling. CPU: nothing."""
        if self._sleeps and not self._awake:
            self._llm.wake_up()
            self._awake = True
