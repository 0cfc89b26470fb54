"""Megatron's gradient buffers around the chunks, and the optimizer over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
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
    chunks: Sequence[GPTModel],
    config: RunConfig,
    device: str,
    before_reduction: Callable[[list[DistributedDataParallel]], None] | None = None,
) -> list[DistributedDataParallel]:
    """The chunks with float32 gradient buffers, reduced over data-parallel ranks; a collective.

    `before_reduction` is called with them when they hold this rank's own gradients of a step.
    """
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
        if before_reduction is not None:
            before_reduction(model)
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


def take_step(optimizer: MegatronOptimizer, lr: float, largest_norm: float) -> tuple[float, bool]:
    """(norm of the whole gradient, whether weights were updated: not where the norm is above
    `largest_norm`). A collective, inside of `megatron_scope`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
    if largest_norm < math.inf:
        optimizer.prepare_grads()  # `step` does it again, with the same result
        norm = torch.tensor(float(optimizer.get_grad_norm()), dtype=torch.float64)
        dist.all_reduce(norm, op=dist.ReduceOp.MAX)  # ranks must not disagree
        if norm > largest_norm:
            return float(norm), False
    _, grad_norm, _ = optimizer.step()
    return math.nan if grad_norm is None else float(grad_norm), True
