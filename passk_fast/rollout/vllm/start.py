"""Starting vLLM; errors that a setting can mend name the setting."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from passk_fast.config import RunConfig
from passk_fast.errors import ConfigError
from passk_fast.model.divisibility import Cuts, check_divisible
from passk_fast.model.shape import ModelShape

if TYPE_CHECKING:
    from vllm import LLM

_GIB = 1 << 30
CPU_BLOCK = 32
"""Tokens per block of keys and values: the smallest that vLLM's CPU kernels take."""
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


def start_llm(config: RunConfig, model_dir: str, device: str) -> LLM:
    """vLLM's LLM; start-up failures that the configuration can mend become ConfigErrors."""
    from vllm import LLM
    from vllm.distributed.parallel_state import destroy_model_parallel

    from passk_fast.rollout.vllm.cpu.shared_memory import own_segments

    rollout = config.rollout
    shape = ModelShape.read(model_dir)
    check_divisible(shape, Cuts(rollout_tensor=rollout.tensor), f"The model in {model_dir}")
    replays = config.algorithm.routing_replay != "off"
    options: dict[str, object] = {
        "model": model_dir,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "tensor_parallel_size": rollout.tensor,
        "distributed_executor_backend": "external_launcher",
        "max_model_len": rollout.max_prompt_tokens + rollout.max_response_tokens,
        "max_num_seqs": rollout.max_num_seqs,
        "enable_prefix_caching": rollout.prefix_caching,
        # Log-probs of the distribution that is sampled from: temperature and top_p applied.
        "logprobs_mode": "processed_logprobs",
        "use_tqdm_on_load": False,
        "enforce_eager": device == "cpu" or rollout.enforce_eager,
    }
    if device == "cpu":
        _check_head_dim(shape, model_dir)
        options["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * _GIB)
        # With seeds, vLLM rewinds a request's generator after a partial prefill, which torch's CPU
        # generator cannot do: prefill every prompt whole.
        options["enable_chunked_prefill"] = False
        # vLLM's default is 128: a prompt shorter than a block is computed for every response.
        options["block_size"] = CPU_BLOCK
        if rollout.cpu_fast_path:
            options |= _fast_path(replays=replays)
    else:
        options["gpu_memory_utilization"] = rollout.gpu_memory_utilization
        options["enable_sleep_mode"] = rollout.sleep
        options["enable_return_routed_experts"] = replays
    try:
        with own_segments() if device == "cpu" else nullcontext():
            return LLM(**options)
    except (ValueError, RuntimeError) as error:
        destroy_model_parallel()
        raise _explain(error, config, device) from error


def _fast_path(*, replays: bool) -> dict[str, object]:
    """vLLM's options for our scheduler and norms; experts kept by cache slot cannot be copied."""
    from passk_fast.rollout.vllm.cpu.partial_block_sharing import PartialBlockSharingScheduler
    from passk_fast.rollout.vllm.cpu.sampler import register_norms
    from passk_fast.rollout.vllm.cpu.scheduler import FastPathScheduler

    return {
        "scheduler_cls": FastPathScheduler if replays else PartialBlockSharingScheduler,
        "kernel_config": {"ir_op_priority": register_norms()},
    }


def _check_head_dim(shape: ModelShape, model_dir: str) -> None:
    """vLLM on CPU finds an unsupported head_dim only at the first sample: ask before."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = shape.head_dim
    allowed = CPUAttentionBackend.get_supported_head_sizes()
    if size not in allowed:
        raise ConfigError(
            f"The model in {model_dir} has head_dim {size}; vLLM on CPU takes one of "
            f"{', '.join(map(str, allowed))}."
        )


def _explain(error: Exception, config: RunConfig, device: str) -> Exception:
    """A ConfigError for the failures that a setting can mend, else the error itself."""
    text, rollout = str(error), config.rollout
    if any(phrase in text.lower() for phrase in _NO_MEMORY):
        setting = (
            f"rollout.kv_cache_gib = {rollout.kv_cache_gib:g}"
            if device == "cpu"
            else f"rollout.gpu_memory_utilization = {rollout.gpu_memory_utilization:g}"
        )
        return ConfigError(
            f"vLLM could not start with {setting}: keys and values of one sequence of "
            f"{rollout.max_prompt_tokens + rollout.max_response_tokens} tokens must fit, and the "
            f"memory must be free. vLLM says: {text}"
        )
    if "max_model_len" in text:
        return ConfigError(
            f"rollout.max_prompt_tokens + rollout.max_response_tokens = "
            f"{rollout.max_prompt_tokens + rollout.max_response_tokens} is more than the model "
            f"allows. vLLM says: {text}"
        )
    return error
