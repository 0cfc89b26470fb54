"""What the ranks of the plan's tests run: real Megatron on a CPU, whose bytes are counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from passk_fast.config import ModelConfig, ParallelConfig, RolloutConfig, RunConfig
from passk_fast.data.types import Sequence
from passk_fast.model.shape import ModelShape

TOKENS = 512


def hf_config(kind: str) -> Any:
    """A small transformers config of a dense model or of a mixture of 8 experts."""
    from transformers import Qwen2Config, Qwen3Config, Qwen3MoeConfig

    sizes: dict[str, Any] = {
        "vocab_size": 500,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TOKENS,
    }
    if kind == "moe":
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
        return Qwen3MoeConfig(**sizes, **experts, head_dim=32, tie_word_embeddings=False)
    if kind == "tied":
        return Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=True)
    sizes["num_key_value_heads"] = 4
    return Qwen2Config(**sizes, tie_word_embeddings=False)


def model_shape(kind: str) -> ModelShape:
    """`hf_config` as the trainer reads it."""
    return ModelShape.parse(hf_config(kind).to_dict())


def run_config(dtype: str, parallel: dict[str, Any]) -> RunConfig:
    """A run whose micro-batches hold TOKENS."""
    return RunConfig(
        model=ModelConfig(dtype=dtype),  # type: ignore[arg-type]
        parallel=ParallelConfig(**parallel),
        micro_batch_tokens=TOKENS,
        rollout=RolloutConfig(max_prompt_tokens=64, max_response_tokens=64),
    )


def held(kind: str, dtype: str, parallel: dict[str, Any]) -> dict[str, int]:
    """Bytes that a rank holds after one optimizer step, by what Megatron and torch keep."""
    warnings.simplefilter("ignore")
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.cpu.megatron_shim import megatron_scope
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    drop_mesh()
    config = run_config(dtype, parallel)
    mesh = make_mesh(config.parallel, "cpu")
    actor = Actor(config, model_shape(kind), mesh)
    chunks, optimizer = actor.chunks, actor.optimizer
    for chunk in chunks:
        chunk.zero_grad_buffer()
    with megatron_scope("cpu"):
        optimizer.step()
    model = _unique([p.data for c in chunks for p in c.parameters()])
    buffers = [b for c in chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
    states: list[torch.Tensor] = []
    mains: list[torch.Tensor] = []
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for parameter, state in part.optimizer.state.items():
            mains.append(parameter.data)
            states += [t for t in state.values() if torch.is_tensor(t) and t.ndim > 0]
    return {
        "parameters": sum(model.values()),
        "gradients": sum(_unique([b.grad_data for b in buffers]).values()),
        "main": sum(size for key, size in _unique(mains).items() if key not in model),
        "moments": sum(_unique(states).values()),
    }


def _unique(tensors: list[torch.Tensor]) -> dict[int, int]:
    found = [t.untyped_storage() for t in tensors]
    return {s.data_ptr(): s.nbytes() for s in found}


@contextmanager
def _activation_of_a_gpu() -> Iterator[None]:
    """What is planned for: SwiGLU of several operators; ours on a CPU keeps its input alone."""
    from passk_fast.actor import model
    from passk_fast.actor.cpu import swiglu

    inner = model.transformer_config

    def transformer_config(*args: Any, **options: Any) -> Any:
        config = inner(*args, **options)
        assert config.use_te_activation_func != bool(config.num_moe_experts)
        config.use_te_activation_func = False
        return config

    def composed(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    with (
        mock.patch.object(model, "transformer_config", transformer_config),
        mock.patch.object(swiglu._CpuSwiglu, "apply", composed),
    ):
        yield


def saved(kind: str, dtype: str, parallel: dict[str, Any]) -> int:
    """Bytes that autograd saves in the forward of one full micro-batch, weights apart, and those of
    the last norm's hidden states, which the output layer gets."""
    warnings.simplefilter("ignore")
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.attention import packed_params
    from passk_fast.actor.cpu.megatron_shim import megatron_scope
    from passk_fast.actor.head import hidden_output
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    drop_mesh()
    config = run_config(dtype, parallel)
    mesh = make_mesh(config.parallel, "cpu")
    with _activation_of_a_gpu():
        actor = Actor(config, model_shape(kind), mesh)
    # Sequences of one length, so that attention on a CPU has nothing to pad.
    each = Sequence(
        token_ids=(1,) * 128, prompt_length=64, rollout_logprobs=(0.0,) * 64, advantage=1.0
    )
    actor.config = replace(config, share_prompts=False)
    (batch,) = actor.pack([each] * (TOKENS // 128))
    params = packed_params(batch, thd=False, padded=True, context_group=mesh.context_group)
    weights = {p.untyped_storage().data_ptr() for c in actor.chunks for p in c.parameters()}
    alive: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    chunk = actor.chunks[0]
    with (
        _activation_of_a_gpu(),
        megatron_scope("cpu"),
        hidden_output(chunk),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        out = chunk(batch.tokens_T[None], batch.positions_T[None], None, packed_seq_params=params)
    assert out.requires_grad
    alive[out.untyped_storage().data_ptr()] = out.untyped_storage()
    return sum(storage.nbytes() for storage in alive.values())
