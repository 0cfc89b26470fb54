"""Mixture-of-experts layers in Megatron's terms: the fields of its configuration, and its layers.

The plan builds its meta models with the same fields.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from passk_fast.actor.moe.grouped import GroupedExperts
from passk_fast.actor.moe.router import Router
from passk_fast.config import AlgorithmConfig, ParallelConfig
from passk_fast.errors import ConfigError
from passk_fast.weights.layout import num_experts


def expert_options(hf: Any, parallel: ParallelConfig) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig for the experts of a model; empty if it has none.

    The router computes in float32. Megatron's own balancing is off: `router.py` has ours.
    """
    count = num_experts(hf)
    if not count:
        return {}
    if count % parallel.expert:
        raise ConfigError(
            f"model: {count} experts are not divisible by parallel.expert = {parallel.expert}."
        )
    # Without norm_topk_prob the weights are shares of the softmax over all experts.
    normalized = hf.model_type != "qwen3_moe" or bool(hf.norm_topk_prob)
    return {
        "num_moe_experts": count,
        "moe_ffn_hidden_size": getattr(hf, "moe_intermediate_size", None) or hf.intermediate_size,
        "moe_router_topk": hf.num_experts_per_tok,
        "moe_router_pre_softmax": not normalized,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor,
    }


def moe_layers(chunk: Any) -> list[tuple[Any, Any]]:
    """(layer, its MoELayer) of a chunk, in order; wrapped chunks too. Empty for a dense model."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    while hasattr(chunk, "module"):
        chunk = chunk.module
    return [(layer, layer.mlp) for layer in chunk.decoder.layers if isinstance(layer.mlp, MoELayer)]


def use_our_parts(layer_spec: Any, *, grouped: bool) -> None:
    """Let the MoE layers of a Megatron layer spec route with our `Router`, and where `grouped`
    compute with our `GroupedExperts`."""
    # Specs are partials since Megatron-core 0.17 or so, ModuleSpecs before.
    mlp = layer_spec.submodules.mlp
    submodules = mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules
    submodules.router = Router
    if not grouped:
        return
    if isinstance(submodules.experts, partial):
        submodules.experts = partial(GroupedExperts, **submodules.experts.keywords)
    else:
        submodules.experts.module = GroupedExperts


def connect_routers(chunk: Any, algorithm: AlgorithmConfig) -> None:
    """Set up balancing, and let every router know of the micro-batch that its layer is computing.

    The layer's attention is called right before it with the same micro-batch, in a forward pass and
    in one that is recomputed; Megatron itself tells the router nothing.
    """
    for layer, mlp in moe_layers(chunk):
        mlp.router.balance_coef = algorithm.balance_coef
        if algorithm.balance_bias_rate:
            mlp.router.use_bias()

        def remember(
            attention: Any, args: Any, kwargs: dict[str, Any], router: Any = mlp.router
        ) -> None:
            router.packed = kwargs.get("packed_seq_params")

        layer.self_attention.register_forward_pre_hook(remember, with_kwargs=True)
        mlp.register_forward_hook(_forget_weights)


def _forget_weights(mlp: Any, *_: object) -> None:
    """Megatron's dispatcher keeps the routing weights of its last pass, and through their autograd
    graph the whole model, beyond the reach of Python's collector."""
    mlp.token_dispatcher.probs = None


def mark_expert_parameters(chunk: Any) -> None:
    """Let Megatron reduce experts' gradients over the ranks that hold the same experts.

    It does so by itself only where parallel.expert > 1; otherwise it takes them for weights cut as
    the attention's are, which is wrong unless expert_tensor = tensor.
    """
    for _, mlp in moe_layers(chunk):
        for parameter in mlp.experts.parameters():
            parameter.allreduce = False
