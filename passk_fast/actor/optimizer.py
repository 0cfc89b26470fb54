"""Megatron's gradient buffers around the chunks, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.actor.model import DTYPES
from passk_fast.config import OptimConfig, RunConfig


def wrap(
    chunks: Sequence[GPTModel], config: RunConfig, device: str
) -> list[DistributedDataParallel]:
    """The chunks with float32 gradient buffers, reduced over data-parallel ranks; a collective."""
    model_config = chunks[0].config
    # Sums, not means: the loss carries the global denominator already.
    model_config.calculate_per_token_loss = True
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_grad_reduce=False,
        grad_reduce_in_fp32=True,
    )
    with megatron_scope(device):
        wrapped = [
            DistributedDataParallel(model_config, ddp, chunk, disable_bucketing=i > 0)
            for i, chunk in enumerate(chunks)
        ]
        for chunk in wrapped:
            chunk.broadcast_params()

    def finalize(
        model: list[DistributedDataParallel], num_tokens: object = None, **kwargs: object
    ) -> None:
        finalize_model_grads(model, None, **kwargs)

    model_config.finalize_model_grads_func = finalize
    return wrapped


def make_optimizer(
    chunks: list[DistributedDataParallel], config: RunConfig, optim: OptimConfig, device: str
) -> MegatronOptimizer:
    """AdamW over wrapped chunks; its state is float32, sharded if the configuration says so."""
    settings = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=0.0,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.grad_clip,
        bf16=config.model.dtype == "bfloat16",
        params_dtype=DTYPES[config.model.dtype],
        use_distributed_optimizer=config.parallel.distributed_optimizer,
    )
    with megatron_scope(device):
        return get_megatron_optimizer(settings, chunks, use_gloo_process_groups=device != "meta")
