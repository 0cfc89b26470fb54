"""The actor's Megatron-core GPTModel, built from a Hugging Face config.

Qwen2/2.5, Qwen3, Llama 3, Qwen3-MoE, Mixtral: grouped-query attention, QKV bias, QK norm, tied
embeddings, rope scaling, experts. Transformer Engine layers where it is installed on a GPU, else
the local spec.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from passk_fast.actor.attention import PackedAttention
from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.actor.cpu.swiglu import Swiglu
from passk_fast.actor.layers import PackedRotary, RMSNorm
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.moe.experts import (
    connect_routers,
    expert_options,
    mark_expert_parameters,
    use_our_parts,
)
from passk_fast.config import ParallelConfig, RunConfig
from passk_fast.errors import ConfigError
from passk_fast.weights.layout import num_experts

VOCAB_MULTIPLE = 8
"""The vocabulary is padded to a multiple of this times the tensor-parallel size."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def uses_transformer_engine(config: RunConfig, device: str) -> bool:
    """True where Transformer Engine's layers are used: installed, and on a GPU.

    Shared prompts and context parallelism take our attention, which knows both.
    """
    ours = config.share_prompts or config.parallel.context > 1
    found = importlib.util.find_spec("transformer_engine") is not None
    return device == "cuda" and found and not ours


def padded_vocab(vocab: int, tensor_size: int) -> int:
    """Rows of the embedding table over all tensor-parallel ranks."""
    multiple = VOCAB_MULTIPLE * tensor_size
    return -(-vocab // multiple) * multiple


def head_dim(hf: Any) -> int:
    """Channels of one attention head."""
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


def rotary_frequencies(hf: Any) -> torch.Tensor:
    """Inverse frequencies [head_dim / 2] float32; ConfigError for an unsupported rope type."""
    rope = getattr(hf, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(
            f"model: rope type {kind!r} is not supported; supported: default, linear, llama3."
        )
    if kind == "default":
        exponents = torch.arange(0, head_dim(hf), 2, dtype=torch.float32) / head_dim(hf)
        return 1.0 / (rope.get("rope_theta", 10000.0) ** exponents)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))[0]


def transformer_config(
    hf: Any, parallel: ParallelConfig, dtype: str, device: str, **more: Any
) -> TransformerConfig:
    """Megatron's configuration of the layers for a transformers config and a mesh.

    `more` are fields of TransformerConfig that go before what is derived here.
    """
    recompute: dict[str, Any] = {}
    if parallel.recompute == "full":
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    elif parallel.recompute == "selective":
        recompute = {"recompute_granularity": "selective"}
    params_dtype = DTYPES[dtype]
    experts = expert_options(hf, parallel)
    fields: dict[str, Any] = dict(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_dim(hf),
        ffn_hidden_size=hf.intermediate_size,
        layernorm_epsilon=hf.rms_norm_eps,
        normalization="RMSNorm",
        qk_layernorm=hf.model_type.startswith("qwen3"),
        add_bias_linear=False,
        add_qkv_bias=hf.model_type == "qwen2" or bool(getattr(hf, "attention_bias", False)),
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        use_te_activation_func=device == "cpu" and not experts,  # our `Swiglu`, not TE's
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
        # With two stages both neighbours are one rank; batched sends over gloo would be mistaken
        # for one another, while the unbatched calls use a group a direction.
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
        **recompute,
    )
    return TransformerConfig(**{**fields, **more})


def layer_spec(config: TransformerConfig) -> Any:
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
        mlp = layer.submodules.mlp  # a partial since Megatron-core 0.17 or so, a ModuleSpec before
        parts = mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules
        parts.activation_func = Swiglu
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return layer


def _block_spec(config: TransformerConfig, transformer_engine: bool, vp_stage: int | None) -> Any:
    if transformer_engine:
        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
        if config.num_moe_experts:
            use_our_parts(layer, grouped=False)
        return layer
    layer = layer_spec(config)
    count = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def build_chunks(hf: Any, config: RunConfig, mesh: Mesh) -> list[GPTModel]:
    """This rank's model chunks (one, or one a virtual stage), randomly initialised."""
    parallel = config.parallel
    with megatron_scope(mesh.device):
        model_parallel_cuda_manual_seed(config.seed)
        transformer_engine = uses_transformer_engine(config, mesh.device)
        grouped = {"moe_grouped_gemm": True} if transformer_engine and num_experts(hf) else {}
        layers = transformer_config(hf, parallel, config.model.dtype, mesh.device, **grouped)
        frequencies = rotary_frequencies(hf)
        chunks = []
        for virtual in range(parallel.virtual_pipeline):
            vp_stage = virtual if parallel.virtual_pipeline > 1 else None
            first = mesh.pipeline_rank == 0 and virtual == 0
            last = mesh.is_last_stage and virtual == parallel.virtual_pipeline - 1
            chunk = GPTModel(
                layers,
                _block_spec(layers, transformer_engine, vp_stage),
                vocab_size=padded_vocab(hf.vocab_size, parallel.tensor),
                max_sequence_length=hf.max_position_embeddings,
                pre_process=first,
                post_process=last,
                share_embeddings_and_output_weights=bool(hf.tie_word_embeddings),
                position_embedding_type="rope" if transformer_engine else "none",
                vp_stage=vp_stage,
            )
            if transformer_engine:
                chunk.rotary_pos_emb = PackedRotary(frequencies)
            for module in chunk.modules():
                if isinstance(module, PackedAttention):
                    module.inv_freq = frequencies
            connect_routers(chunk, config.algorithm)
            mark_expert_parameters(chunk)
            chunks.append(chunk.to(mesh.torch_device))
        return chunks
