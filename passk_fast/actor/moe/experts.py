"""Mixture-of-experts layers in Megatron's terms: the fields of its configuration, and its layers.

The plan builds its meta models with the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol, cast

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import nn

from passk_fast.actor.attention import PackedParams
from passk_fast.actor.moe.grouped import GroupedExperts
from passk_fast.actor.moe.router import Router
from passk_fast.config import AlgorithmConfig, ParallelConfig
from passk_fast.model.shape import ModelShape
from passk_fast.weights.megatron import layers_of


class Submodules(Protocol):
    """What a Megatron MLP or MoE layer is made of; each kind has some of these."""

    router: type[nn.Module]
    experts: ModuleSpec | partial[nn.Module]
    activation_func: type[nn.Module]


def expert_options(shape: ModelShape, parallel: ParallelConfig) -> dict[str, object]:
    """Fields of Megatron's TransformerConfig for the experts of a model; empty if it has none.

    The router computes in float32. Megatron's own balancing is off: `router.py` has ours.
    """
    if not shape.num_experts:
        return {}
    return {
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.expert_width,
        "moe_router_topk": shape.experts_per_token,
        "moe_router_pre_softmax": not shape.normalized_experts,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor,
    }


def moe_layers(chunk: nn.Module) -> list[tuple[nn.Module, MoELayer]]:
    """(layer, its MoELayer) of a chunk, in order; wrapped chunks too. Empty for a dense model."""
    pairs = [(layer, layer.get_submodule("mlp")) for layer in layers_of(chunk)]
    return [(layer, mlp) for layer, mlp in pairs if isinstance(mlp, MoELayer)]


def routers_of(chunk: nn.Module) -> list[Router]:
    """The routers of a chunk, in the order of its layers."""
    return [cast(Router, mlp.router) for _, mlp in moe_layers(chunk)]


def mlp_parts(layer_spec: ModuleSpec) -> Submodules:
    """The MLP's submodules in a Megatron layer spec."""
    # Specs are partials since Megatron-core 0.17 or so, ModuleSpecs before.
    mlp = layer_spec.submodules.mlp
    parts = mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules
    return cast(Submodules, parts)


def use_our_parts(layer_spec: ModuleSpec, *, grouped: bool) -> None:
    """Let the MoE layers of a Megatron layer spec route with our `Router`, and where `grouped`
    compute with our `GroupedExperts`."""
    parts = mlp_parts(layer_spec)
    parts.router = Router
    if not grouped:
        return
    if isinstance(parts.experts, partial):
        parts.experts = partial(GroupedExperts, **parts.experts.keywords)
    else:
        parts.experts.module = GroupedExperts


def connect_routers(chunk: nn.Module, algorithm: AlgorithmConfig) -> None:
    """Set up balancing, and tell every router the micro-batch that its layer is computing.

    The layer's attention is called right before the router with the same micro-batch, in a forward
    pass and in one that is recomputed; Megatron itself tells the router nothing.
    """
    for layer, mlp in moe_layers(chunk):
        router = cast(Router, mlp.router)
        router.balance_coef = algorithm.balance_coef
        if algorithm.balance_bias_rate:
            router.use_bias()
        attention = layer.get_submodule("self_attention")
        attention.register_forward_pre_hook(partial(_remember, router), with_kwargs=True)
        mlp.register_forward_hook(_forget_weights)


def _remember(
    router: Router, attention: nn.Module, args: object, kwargs: Mapping[str, object]
) -> None:
    packed = kwargs.get("packed_seq_params")
    router.packed = packed if isinstance(packed, PackedParams) else None


def _forget_weights(mlp: MoELayer, *_: object) -> None:
    """Megatron's dispatcher keeps the routing weights of its last pass, and through their autograd
    graph the whole model, beyond the reach of Python's garbage collector."""
    mlp.token_dispatcher.probs = None


def mark_expert_parameters(chunk: nn.Module) -> None:
    """Let Megatron reduce experts' gradients over the ranks that hold the same experts.

    It does so by itself only where parallel.expert > 1; otherwise it takes them for weights cut as
    the attention's are, which is wrong unless expert_tensor = tensor.
    """
    for _, mlp in moe_layers(chunk):
        for parameter in mlp.experts.parameters():
            parameter.allreduce = False
