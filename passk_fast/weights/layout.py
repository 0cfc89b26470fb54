"""The layout table: for every weight its Hugging Face name, and where trainer and engine hold it.

One row a Hugging Face tensor, for Qwen2/2.5, Qwen3, Llama 3, Qwen3-MoE and Mixtral. Import, export
and resharding are readers of this table; nothing else knows a weight's name. `placement.py` turns
rows into rectangles for a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from passk_fast.errors import ConfigError
from passk_fast.model.experts import num_experts


class Split(StrEnum):
    """How tensor-parallel ranks divide a tensor inside of the parameter that holds it."""

    NONE = "none"
    """Every rank holds all of it."""
    ROWS = "rows"
    """Dimension 0, below the rows of the tensors stacked before it (`Place.before`)."""
    COLUMNS = "columns"
    """Dimension 1."""
    VOCAB = "vocab"
    """Dimension 0 of the vocabulary padded with rows that nobody reads."""
    GROUPED = "grouped"
    """Dimension 0, interleaved: each key-value head with its queries (Megatron's linear_qkv)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor stands in one side's parameter."""

    name: str
    """Parameter, with {layer} (global index) and, where there is one a rank, {expert} (local)."""
    split: Split = Split.NONE
    before: tuple[int, ...] = ()
    """Rows of the full tensors that are stacked above it in the same parameter."""
    unit: int = 1
    """Rows that stay together (a head); with fewer units than ranks, ranks share one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Hugging Face tensor, or one a layer, or one an expert of each layer."""

    hf: str
    """Name with {layer} and {expert} (both global)."""
    shape: tuple[int, ...]
    trainer: tuple[Place, ...]
    """More than one where stages hold copies (a tied embedding)."""
    rollout: Place
    per_layer: bool = True
    per_expert: bool = False


class Spec(StrEnum):
    """Which of Megatron's layer specs names the trainer's parameters."""

    LOCAL = "local"
    TE = "te"
    """Transformer Engine: norms inside of the linear layer that follows them, grouped experts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that the table needs."""

    architecture: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    padded_vocab: int
    tied: bool
    num_experts: int = 0

    @classmethod
    def from_hf(cls, hf: Any, padded_vocab: int) -> Self:
        """From a transformers config and the trainer's padded vocabulary.

        ConfigError for an architecture without a table.
        """
        if hf.model_type not in ARCHITECTURES:
            raise ConfigError(
                f"model: no layout table for {hf.model_type!r}; there is one for "
                f"{', '.join(ARCHITECTURES)}. To add one, describe its tensors in "
                "passk_fast/weights/layout.py."
            )
        experts = num_experts(hf)
        width = getattr(hf, "moe_intermediate_size", None) if experts else None
        if getattr(hf, "mlp_only_layers", None) or getattr(hf, "decoder_sparse_step", 1) != 1:
            raise ConfigError("model: dense layers among mixture-of-experts layers have no table.")
        return cls(
            architecture=hf.model_type,
            num_layers=hf.num_hidden_layers,
            hidden=hf.hidden_size,
            intermediate=width or hf.intermediate_size,
            num_heads=hf.num_attention_heads,
            num_kv_heads=hf.num_key_value_heads,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
            vocab=hf.vocab_size,
            padded_vocab=padded_vocab,
            tied=bool(hf.tie_word_embeddings),
            num_experts=experts,
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What distinguishes one family from the next."""

    qkv_bias: bool = False
    qk_norm: bool = False
    router: str = ""
    """Router of a mixture of experts, under model.layers.N."""
    experts: str = ""
    expert_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    engine_experts: str = ""


ARCHITECTURES = {
    "qwen2": Architecture(qkv_bias=True),
    "qwen3": Architecture(qk_norm=True),
    "llama": Architecture(),
    "qwen3_moe": Architecture(
        qk_norm=True,
        router="mlp.gate",
        experts="mlp.experts",
        engine_experts="mlp.experts.routed_experts",
    ),
    "mixtral": Architecture(
        router="block_sparse_moe.gate",
        experts="block_sparse_moe.experts",
        expert_names=("w1", "w3", "w2"),
        engine_experts="block_sparse_moe.experts.routed_experts",
    ),
}


def table(shape: ModelShape, spec: Spec = Spec.LOCAL) -> tuple[Row, ...]:
    """All rows of a model."""
    family = ARCHITECTURES[shape.architecture]
    rows = [*_top(shape), *_norms(shape, family, spec), *_attention(shape, family)]
    rows += _experts(shape, family, spec) if shape.num_experts else _mlp(shape)
    return tuple(rows)


def _top(shape: ModelShape) -> Iterator[Row]:
    matrix = (shape.vocab, shape.hidden)
    embedding = Place(name="embedding.word_embeddings.weight", split=Split.VOCAB)
    head = Place(name="output_layer.weight", split=Split.VOCAB)
    yield Row(
        hf="model.embed_tokens.weight",
        shape=matrix,
        trainer=(embedding, head) if shape.tied else (embedding,),
        rollout=Place(name="model.embed_tokens.weight", split=Split.VOCAB),
        per_layer=False,
    )
    if not shape.tied:
        yield Row(
            hf="lm_head.weight",
            shape=matrix,
            trainer=(head,),
            rollout=Place(name="lm_head.weight", split=Split.VOCAB),
            per_layer=False,
        )
    yield Row(
        hf="model.norm.weight",
        shape=(shape.hidden,),
        trainer=(Place(name="decoder.final_layernorm.weight"),),
        rollout=Place(name="model.norm.weight"),
        per_layer=False,
    )


def _same(suffix: str, size: int, trainer: str) -> Row:
    """A vector that every rank of both sides holds whole."""
    name = f"model.layers.{{layer}}.{suffix}.weight"
    place = Place(name=f"decoder.layers.{{layer}}.{trainer}")
    return Row(hf=name, shape=(size,), trainer=(place,), rollout=Place(name=name))


def _norms(shape: ModelShape, family: Architecture, spec: Spec) -> Iterator[Row]:
    te = spec is Spec.TE
    first = "self_attention.linear_qkv.layer_norm_weight" if te else "input_layernorm.weight"
    dense = te and not shape.num_experts
    second = "mlp.linear_fc1.layer_norm_weight" if dense else "pre_mlp_layernorm.weight"
    yield _same("input_layernorm", shape.hidden, first)
    yield _same("post_attention_layernorm", shape.hidden, second)
    if family.qk_norm:
        yield _same("self_attn.q_norm", shape.head_dim, "self_attention.q_layernorm.weight")
        yield _same("self_attn.k_norm", shape.head_dim, "self_attention.k_layernorm.weight")


def _attention(shape: ModelShape, family: Architecture) -> Iterator[Row]:
    d = shape.head_dim
    heads = {"q": shape.num_heads * d, "k": shape.num_kv_heads * d, "v": shape.num_kv_heads * d}
    for kind in ("weight", "bias") if family.qkv_bias else ("weight",):
        before: tuple[int, ...] = ()
        for letter, size in heads.items():
            yield Row(
                hf=f"model.layers.{{layer}}.self_attn.{letter}_proj.{kind}",
                shape=(size, shape.hidden) if kind == "weight" else (size,),
                trainer=(
                    Place(
                        name=f"decoder.layers.{{layer}}.self_attention.linear_qkv.{kind}",
                        split=Split.GROUPED,
                        before=before,
                        unit=d,
                    ),
                ),
                rollout=Place(
                    name=f"model.layers.{{layer}}.self_attn.qkv_proj.{kind}",
                    split=Split.ROWS,
                    before=before,
                    unit=d,
                ),
            )
            before += (size,)
    yield Row(
        hf="model.layers.{layer}.self_attn.o_proj.weight",
        shape=(shape.hidden, heads["q"]),
        trainer=(
            Place(
                name="decoder.layers.{layer}.self_attention.linear_proj.weight",
                split=Split.COLUMNS,
            ),
        ),
        rollout=Place(name="model.layers.{layer}.self_attn.o_proj.weight", split=Split.COLUMNS),
    )


def _gated(
    shape: ModelShape, names: tuple[str, str, str], trainer: tuple[str, str], rollout: list[str]
) -> Iterator[Row]:
    """gate and up stacked, and down: an MLP or one expert."""
    expert = bool(shape.num_experts)
    for i, name in enumerate(names[:2]):
        before = (shape.intermediate,) * i
        yield Row(
            hf=name,
            shape=(shape.intermediate, shape.hidden),
            trainer=(Place(name=trainer[0], split=Split.ROWS, before=before),),
            rollout=Place(name=rollout[0], split=Split.ROWS, before=before),
            per_expert=expert,
        )
    yield Row(
        hf=names[2],
        shape=(shape.hidden, shape.intermediate),
        trainer=(Place(name=trainer[1], split=Split.COLUMNS),),
        rollout=Place(name=rollout[1], split=Split.COLUMNS),
        per_expert=expert,
    )


def _mlp(shape: ModelShape) -> Iterator[Row]:
    layer = "model.layers.{layer}.mlp."
    mine = "decoder.layers.{layer}.mlp."
    names = (f"{layer}gate_proj.weight", f"{layer}up_proj.weight", f"{layer}down_proj.weight")
    yield from _gated(
        shape,
        names,
        (f"{mine}linear_fc1.weight", f"{mine}linear_fc2.weight"),
        [f"{layer}gate_up_proj.weight", f"{layer}down_proj.weight"],
    )


def _experts(shape: ModelShape, family: Architecture, spec: Spec) -> Iterator[Row]:
    layer, mine = "model.layers.{layer}.", "decoder.layers.{layer}.mlp."
    router = f"{layer}{family.router}.weight"
    yield Row(
        hf=router,
        shape=(shape.num_experts, shape.hidden),
        trainer=(Place(name=f"{mine}router.weight"),),
        rollout=Place(name=router),
    )
    gate, up, down = (f"{layer}{family.experts}.{{expert}}.{n}.weight" for n in family.expert_names)
    if spec is Spec.TE:
        fc1, fc2 = (f"{mine}experts.linear_fc{i}.weight{{expert}}" for i in (1, 2))
    else:
        local = f"{mine}experts.local_experts.{{expert}}"
        fc1, fc2 = (f"{local}.linear_fc{i}.weight" for i in (1, 2))
    engine = f"{layer}{family.engine_experts}"
    weights = [f"{engine}.w13_weight", f"{engine}.w2_weight"]
    yield from _gated(shape, (gate, up, down), (fc1, fc2), weights)
