"""Every place where this project changes vLLM, or uses parts of it that are not public.

Those that are contexts stand here, the others where they are used; docs/patches.md shows them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from passk_fast.patch import Patch


@contextmanager
def default_group_kept() -> Iterator[None]:
    """vLLM's shutdown destroys the default process group, which is the trainer's."""
    from vllm.distributed import parallel_state

    destroy = parallel_state.destroy_distributed_environment
    parallel_state.destroy_distributed_environment = lambda: None
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = destroy


@contextmanager
def eager_helpers() -> Iterator[None]:
    """On CPU vLLM compiles one helper with inductor, which takes 20 s and gains nothing measurable.

    Inside, torch runs what is to be compiled as it is.
    """
    with torch.compiler.set_stance("force_eager"):
        yield


_HERE = "passk_fast.rollout.vllm."
_FAST = "the engine's life, on a CPU with rollout.cpu_fast_path"
_CPU_TEST = "tests/rollout/vllm/test_cpu.py"
_ENGINE_TEST = "tests/rollout/vllm/test_engine.py"

PATCHES = (
    Patch(
        function=_HERE + "patches.default_group_kept",
        targets=("vllm.distributed.parallel_state.destroy_distributed_environment",),
        scope="while an engine shuts down; ends with it",
        breaks="vLLM destroys the group by another function: the next collective would fail.",
        test=_ENGINE_TEST,
    ),
    Patch(
        function=_HERE + "patches.eager_helpers",
        targets=("torch.compiler.set_stance",),
        scope="while an engine samples on a CPU; ends with it",
        breaks="Nothing: sampling would start 20 s later.",
        test=_ENGINE_TEST,
    ),
    Patch(
        function=_HERE + "cpu.shared_memory.own_segments",
        targets=(
            "vllm.distributed.device_communicators.cpu_communicator._CPUSHMDistributed"
            ".make_group_name",
        ),
        scope="while an engine starts on a CPU; ends with it",
        breaks="vLLM names its segments elsewhere: two runs on one machine would collide.",
        test=_ENGINE_TEST,
    ),
    Patch(
        function=_HERE + "cpu.sampler.use_seeded_sampler",
        targets=("vllm.v1.sample.ops.topk_topp_sampler.TopKTopPSampler.forward",),
        scope=_FAST,
        breaks="The sampler gets other arguments, or vLLM asks for log-probs in another place.",
        test=_CPU_TEST,
    ),
    Patch(
        function=_HERE + "cpu.sampler.register_norms",
        targets=("vllm.ir.ops.rms_norm", "vllm.ir.ops.fused_add_rms_norm"),
        scope=_FAST + "; the registration stays, and is used by name alone",
        breaks="The operators or the kernels torch.ops._C.rms_norm take other arguments.",
        test=_CPU_TEST,
    ),
    Patch(
        function=_HERE + "cpu.scheduler.FastPathScheduler",
        targets=(
            "vllm.v1.core.sched.scheduler.Scheduler.schedule",
            "vllm.v1.core.sched.scheduler.Scheduler.update_from_output",
            "vllm.v1.core.sched.scheduler.Scheduler._free_request",
            "vllm.v1.request.Request",
        ),
        scope=_FAST + " (vLLM's option scheduler_cls)",
        breaks="vLLM's scheduler does more per token, or keeps a request's tokens elsewhere.",
        test=_CPU_TEST,
    ),
    Patch(
        function=_HERE + "cpu.partial_block_sharing.PartialBlockSharingScheduler",
        targets=(
            "vllm.v1.core.kv_cache_manager.KVCacheManager.get_computed_blocks",
            "vllm.v1.core.sched.scheduler.Scheduler._preempt_request",
        ),
        scope=_FAST + ", without algorithm.routing_replay (vLLM's option scheduler_cls)",
        breaks="vLLM no longer copies a partially filled block that a request hits.",
        test=_CPU_TEST,
    ),
    Patch(
        function=_HERE + "routed_experts.capture_choices",
        targets=(
            "vllm.model_executor.layers.fused_moe.router.base_router.BaseRouter.set_capture_fn",
        ),
        scope="the engine's life, on a CPU with algorithm.routing_replay",
        breaks="Routers no longer report what they chose, or in another order of layers.",
        test="tests/rollout/vllm/test_routed_experts.py",
    ),
    Patch(
        function=_HERE + "parameters.OpenParameters",
        targets=(
            "vllm.model_executor.model_loader.reload.layerwise.initialize_layerwise_reload",
            "vllm.model_executor.model_loader.reload.layerwise.materialize_layer",
            "vllm.model_executor.model_loader.reload.layerwise._get_original_loader",
            "vllm.model_executor.model_loader.reload.layerwise._copy_and_restore_kernel_tensors",
        ),
        scope="from `open_parameters` to `close_parameters`",
        breaks="vLLM's reloading takes other steps: the probe after a weight sync raises.",
        test="tests/run/test_weight_sync.py",
    ),
)
