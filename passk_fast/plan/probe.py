"""The real Megatron model of a rank on the meta device, and what it holds. Needs a fake world.

`stage_bytes` builds all of a rank's chunks with gradient buffers and optimizer, as the actor does;
`layer_costs` runs chunks of one and two layers forward and backward, since layers are alike.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from passk_fast.actor.attention import PackedParams, packed_params
from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.actor.head import hidden_output
from passk_fast.actor.layers import RMSNorm
from passk_fast.actor.mesh import Mesh, drop_mesh, make_mesh
from passk_fast.actor.model import DTYPES, layer_spec, make_chunk, transformer_config
from passk_fast.actor.optimizer import make_optimizer, wrap
from passk_fast.config import RunConfig
from passk_fast.data import packing
from passk_fast.data.context_parallel import context_part
from passk_fast.data.types import Sequence
from passk_fast.kernels.torch_logprob import token_logprob_from_logits
from passk_fast.model.shape import ModelShape
from passk_fast.plan.experts import balance_experts
from passk_fast.plan.facts import Costs, StageBytes
from passk_fast.plan.meta import Ledger, fuse_norms


@contextmanager
def fake_world(config: RunConfig, world: int, rank: int) -> Iterator[Mesh]:
    """A process group of `world` ranks of which only `rank` exists; collectives do nothing."""
    import torch.distributed._tools.fake_collectives  # noqa: F401  registers them for meta tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield make_mesh(config.parallel, "meta")
    finally:
        drop_mesh()
        dist.destroy_process_group()


def stage_bytes(shape: ModelShape, config: RunConfig, mesh: Mesh) -> StageBytes:
    """What this rank's chunks, gradient buffers and optimizer hold between steps."""
    return held_bytes(*build(shape, config, mesh))


def build(
    shape: ModelShape, config: RunConfig, mesh: Mesh
) -> tuple[list[DistributedDataParallel], MegatronOptimizer]:
    """(wrapped chunks, optimizer) of this rank on the mesh's device, as the actor builds them."""
    virtual = config.parallel.virtual_pipeline
    with megatron_scope(mesh.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_parallel_cuda_manual_seed(config.seed)
        layers = _layers(shape, config, mesh.device)
        chunks = []
        for v in range(virtual):
            vp = v if virtual > 1 else None
            first = mesh.pipeline_rank == 0 and v == 0
            last = mesh.is_last_stage and v == virtual - 1
            spec = _spec(shape, layers, get_num_layers_to_build(layers, vp))
            chunk = make_chunk(shape, layers, spec, first=first, last=last, vp_stage=vp)
            chunks.append(chunk.to(mesh.torch_device))
        wrapped = wrap(chunks, config, mesh.device)
        return wrapped, make_optimizer(wrapped, config, config.optim, mesh.device)


def _layers(shape: ModelShape, config: RunConfig, device: str) -> TransformerConfig:
    return transformer_config(shape, config.parallel, config.model.dtype, device)


def _spec(shape: ModelShape, layers: TransformerConfig, count: int) -> TransformerBlockSubmodules:
    """`count` layers of Megatron's local spec."""
    layer = layer_spec(shape, layers)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def held_bytes(wrapped: list[DistributedDataParallel], optimizer: MegatronOptimizer) -> StageBytes:
    """Bytes of wrapped chunks and their optimizer, by storage; moments as after one step."""
    parameters = [p for chunk in wrapped for p in chunk.parameters()]
    held = _storages(parameters)
    buffers = [b for c in wrapped for b in (*c.buffers, *c.expert_parallel_buffers)]
    gradients = _storages([b.grad_data for b in buffers])
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    mains = {k: v for k, v in _storages(owned).items() if k not in held}
    experts = sum(p.numel() for p in parameters if not getattr(p, "allreduce", True))
    return StageBytes(
        weights=sum(p.numel() for p in parameters),
        expert_weights=experts,
        parameters=sum(held.values()),
        gradients=sum(gradients.values()),
        main=sum(mains.values()),
        moments=8 * sum(p.numel() for p in owned),
    )


def _storages(tensors: list[Tensor]) -> dict[int, int]:
    found = [t.untyped_storage() for t in tensors]
    return {s._cdata: s.nbytes() for s in found}


# ---- one micro-batch ---------------------------------------------------------------------------


def _packed(config: RunConfig, mesh: Mesh, tokens: int) -> tuple[Tensor, PackedParams]:
    """(tokens [1, T], packed parameters) of a micro-batch of one sequence, on meta."""
    cp = mesh.context_size
    multiple = mesh.tensor_size * (2 * cp if cp > 1 else 1)
    sequence = Sequence(
        token_ids=(0,) * tokens,
        prompt_length=1,
        rollout_logprobs=(0.0,) * (tokens - 1),
        advantage=1.0,
    )
    batch = packing.pack([sequence], [0], multiple=multiple, pad_id=0)
    if cp > 1:
        batch = context_part(batch, mesh.context_rank, cp)
    # The kernels of a GPU, in float32 too, which there would pad.
    params = packed_params(batch, thd=False, padded=False, context_group=mesh.context_group)
    for name, value in vars(params).items():
        if isinstance(value, Tensor):
            setattr(params, name, value.to("meta"))
    return batch.tokens_T[None].to("meta"), params


def _cost(
    shape: ModelShape,
    config: RunConfig,
    mesh: Mesh,
    tokens: int,
    count: int,
    *,
    first: bool = False,
    last: bool = False,
) -> Costs:
    """Of one micro-batch through a chunk of `count` layers; `first`: with the embedding, `last`:
    with final norm and output layer."""
    whole = replace(config, parallel=replace(config.parallel, virtual_pipeline=1))
    layers = _layers(shape, whole, "meta")
    untied = replace(shape, tied=False)  # a tied head wants the first stage's embedding
    chunk = make_chunk(untied, layers, _spec(shape, layers, count), first=first, last=last).to(
        "meta"
    )
    balance_experts(chunk, config.parallel)
    fuse_norms(chunk)
    chunk.train()
    tokens_BT, params = _packed(config, mesh, tokens)
    rows = tokens_BT.shape[1] // mesh.tensor_size
    entering = None
    if not first:
        entering = torch.empty(
            rows, 1, shape.hidden, dtype=layers.params_dtype, device="meta", requires_grad=True
        )
        chunk.set_input_tensor(entering)
    grads = [torch.empty_like(p, dtype=torch.float32) for p in chunk.parameters()]
    for parameter, grad in zip(chunk.parameters(), grads, strict=True):
        _to_main_grad(parameter, grad)
    gc.collect()
    ledger = Ledger()
    with ledger, hidden_output(chunk):
        out = chunk(tokens_BT, None, None, packed_seq_params=params)
        params.rotation = None
        gc.collect()
        saved = ledger.live
        forward = ledger.traffic.element_bytes
        out.backward(torch.empty_like(out))
    return Costs(
        saved=saved,
        peak=ledger.peak,
        element_bytes=ledger.traffic.element_bytes,
        element_bytes_forward=forward,
        sent=ledger.traffic.sent,
    )


def _to_main_grad(parameter: Tensor, grad: Tensor) -> None:
    """Megatron's wrapper adds a gradient to its float32 buffer at once and drops it."""

    def add(p: Tensor) -> None:
        assert p.grad is not None
        grad.add_(p.grad)
        p.grad = None

    parameter.register_post_accumulate_grad_hook(add)


def layer_costs(shape: ModelShape, config: RunConfig, mesh: Mesh, tokens: int) -> dict[str, Costs]:
    """Costs of one micro-batch: "one" and "two" layers, and one layer with either end."""
    with megatron_scope("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_parallel_cuda_manual_seed(config.seed)
        _cost(shape, config, mesh, tokens, 1)  # first calls leave things behind
        return {
            "one": _cost(shape, config, mesh, tokens, 1),
            "two": _cost(shape, config, mesh, tokens, 2),
            "first": _cost(shape, config, mesh, tokens, 1, first=True),
            "last": _cost(shape, config, mesh, tokens, 1, last=True),
        }


def logits_head(shape: ModelShape, config: RunConfig, mesh: Mesh, tokens: int) -> int:
    """Peak bytes of the loss from logits [T, V / tp] on this rank, forward and backward."""
    rows = tokens // mesh.context_size
    width = shape.trainer_vocab(mesh.tensor_size) // mesh.tensor_size
    dtype = DTYPES[config.model.dtype]
    ledger = Ledger()
    with megatron_scope("meta"), ledger:
        logits = torch.empty(rows, width, dtype=dtype, device="meta").requires_grad_()
        logp, _ = token_logprob_from_logits(
            logits,
            torch.empty(rows, dtype=torch.int64, device="meta"),
            temperature=1.0,
            group=mesh.tensor_group if mesh.tensor_size > 1 else None,
            vocab=shape.vocab,
            soft_cap=shape.logit_soft_cap,
        )
        logp.sum().backward()
    return ledger.peak
