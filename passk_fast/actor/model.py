"""The actor's Megatron-core GPTModel, built from a `ModelShape`.

Grouped-query attention, QKV bias, QK norm, tied embeddings, rope scaling, soft caps, output norms
and experts, as the shape says. Transformer Engine's layers where it is installed on a GPU and knows
the model, else Megatron's local spec.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from passk_fast.actor.attention import PackedAttention
from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.actor.cpu.swiglu import Swiglu
from passk_fast.actor.layers import OutputNormLayer, PackedRotary, RMSNorm
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.moe.experts import (
    connect_routers,
    expert_options,
    mark_expert_parameters,
    mlp_parts,
    use_our_parts,
)
from passk_fast.actor.scores import Scores
from passk_fast.config import ParallelConfig, RunConfig
from passk_fast.model.divisibility import Cuts, check_divisible
from passk_fast.model.families import Activation
from passk_fast.model.shape import ModelShape, Rope

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def uses_transformer_engine(config: RunConfig, shape: ModelShape, device: str) -> bool:
    """True where Transformer Engine's layers are used: installed, and on a GPU.

    Context parallelism, soft caps, and shared prompts where they are asked for (`true`, not "auto")
    take our attention, which knows them.
    """
    context = config.parallel.context > 1
    ours = config.share_prompts is True or context or shape.needs_our_layers
    found = importlib.util.find_spec("transformer_engine") is not None
    return device == "cuda" and found and not ours


def rotary_frequencies(shape: ModelShape) -> Float[Tensor, " half_head"]:
    """Inverse frequencies [head_dim / 2], float32, scaled as the model's `rope` says."""
    rope, size = shape.rope, shape.head_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    return _llama3_frequencies(frequencies, rope) if rope.kind == "llama3" else frequencies


def _llama3_frequencies(frequencies: Tensor, rope: Rope) -> Tensor:
    """Low frequencies divided by the factor, high ones as they are, those between interpolated:
    transformers' `_compute_llama3_parameters`, operation by operation."""
    positions, low, high = rope.original_max_positions, rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > positions / low, frequencies / rope.factor, frequencies)
    smooth = (positions / wavelength - low) / (high - low)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    is_between = ~(wavelength < positions / high) * ~(wavelength > positions / low)
    return torch.where(is_between, between, scaled)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_pytorch_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}

_RECOMPUTE: dict[str, dict[str, object]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}
"""Fields of TransformerConfig by parallel.recompute."""


def transformer_config(
    shape: ModelShape, parallel: ParallelConfig, dtype: str, device: str, **more: object
) -> TransformerConfig:
    """Megatron's configuration of the layers for a model and a mesh.

    `more` are fields of TransformerConfig that replace those derived here. ConfigError when the
    mesh does not divide the model.
    """
    check_divisible(shape, Cuts.of(parallel))
    params_dtype = DTYPES[dtype]
    experts = expert_options(shape, parallel)
    fields: dict[str, object] = dict(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_width,
        layernorm_epsilon=shape.norm_eps,
        normalization="RMSNorm",
        qk_layernorm=shape.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True,
        layernorm_zero_centered_gamma=shape.family.centered_norms,
        activation_func=ACTIVATIONS[shape.family.activation],
        # Our `Swiglu`, not TE's.
        use_te_activation_func=(
            device == "cpu" and not experts and shape.family.activation == "silu"
        ),
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        ),
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.tensor > 1,
        params_dtype=params_dtype,
        pipeline_dtype=params_dtype,
        bf16=dtype == "bfloat16",
        variable_seq_lengths=parallel.virtual_pipeline == 1,  # packed micro-batches differ
        # With two stages both neighbours are one rank. Batched sends over gloo would be mistaken
        # for one another; the unbatched calls use one group per direction.
        batch_p2p_comm=device != "cpu",
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=device == "cpu",
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        **{"moe_token_dispatcher_type": "alltoall", **experts},  # Megatron wants it, dense too
        **_RECOMPUTE[parallel.recompute],
    )
    return TransformerConfig(**{**fields, **more})


def layer_spec(shape: ModelShape, config: TransformerConfig) -> ModuleSpec:
    """Megatron's local layer with our norms and attention, and on a CPU our activation."""
    layer = get_gpt_layer_local_spec(
        normalization="RMSNorm",
        qk_layernorm=config.qk_layernorm,
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=False,
    )
    if config.num_moe_experts:
        use_our_parts(layer, grouped=True)
    if config.use_te_activation_func:
        mlp_parts(layer).activation_func = Swiglu
    if shape.family.output_norms:
        layer.module = OutputNormLayer
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return layer


def _block_spec(
    shape: ModelShape, config: TransformerConfig, transformer_engine: bool, vp_stage: int | None
) -> ModuleSpec | TransformerBlockSubmodules:
    if transformer_engine:
        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
        if config.num_moe_experts:
            use_our_parts(layer, grouped=False)
        return layer
    layer = layer_spec(shape, config)
    count = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def build_chunks(shape: ModelShape, config: RunConfig, mesh: Mesh) -> list[GPTModel]:
    """This rank's model chunks (one, or one per virtual stage), randomly initialised."""
    parallel = config.parallel
    with megatron_scope(mesh.device):
        model_parallel_cuda_manual_seed(config.seed)
        transformer_engine = uses_transformer_engine(config, shape, mesh.device)
        for layer in range(shape.num_layers):
            layer_scores(shape, layer).check(mesh.device, DTYPES[config.model.dtype])
        grouped = {"moe_grouped_gemm": True} if transformer_engine and shape.num_experts else {}
        layers = transformer_config(shape, parallel, config.model.dtype, mesh.device, **grouped)
        chunks = []
        for virtual in range(parallel.virtual_pipeline):
            vp_stage = virtual if parallel.virtual_pipeline > 1 else None
            chunk = make_chunk(
                shape,
                layers,
                _block_spec(shape, layers, transformer_engine, vp_stage),
                first=mesh.pipeline_rank == 0 and virtual == 0,
                last=mesh.is_last_stage and virtual == parallel.virtual_pipeline - 1,
                vp_stage=vp_stage,
                transformer_engine=transformer_engine,
            )
            connect_routers(chunk, config.algorithm)
            mark_expert_parameters(chunk)
            chunks.append(chunk.to(mesh.torch_device))
        return chunks


def make_chunk(
    shape: ModelShape,
    layers: TransformerConfig,
    spec: ModuleSpec | TransformerBlockSubmodules,
    *,
    first: bool,
    last: bool,
    vp_stage: int | None = None,
    transformer_engine: bool = False,
) -> GPTModel:
    """One model chunk; `first`: with the embedding, `last`: with final norm and output layer."""
    chunk = GPTModel(
        layers,
        spec,
        vocab_size=shape.trainer_vocab(layers.tensor_model_parallel_size),
        max_sequence_length=shape.max_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope" if transformer_engine else "none",
        vp_stage=vp_stage,
    )
    frequencies = rotary_frequencies(shape)
    if transformer_engine:
        chunk.rotary_pos_emb = PackedRotary(frequencies)
    for module in chunk.modules():
        if isinstance(module, PackedAttention):
            module.inv_freq = frequencies
            module.scores = layer_scores(shape, module.layer)
    if first and shape.embedding_scale != 1.0:
        # transformers' and vLLM's rounding: 55.5 in bfloat16 for a hidden size of 3,072.
        scale = float(torch.tensor(shape.embedding_scale, device="cpu").to(layers.params_dtype))
        chunk.embedding.register_forward_hook(lambda module, inputs, out: out * scale)
    return chunk


def layer_scores(shape: ModelShape, layer: int) -> Scores:
    """The attention scores of a layer (0, 1, ...) of the whole model."""
    return Scores(
        scale=shape.softmax_scale,
        soft_cap=shape.attention_soft_cap,
        window=shape.windows[layer] if shape.windows else 0,
    )
