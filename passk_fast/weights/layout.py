"""The layout table: for every weight its Hugging Face name, and where trainer and engine hold it.

One row per Hugging Face tensor, for every family of `model/families.py`. Import, export and
resharding read this table; nothing else knows a weight's name. `placement.py` turns rows into
rectangles for a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from passk_fast.model.families import Mixture
from passk_fast.model.shape import ModelShape


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
    """The parameter, with {layer} (global index) and, where each expert has its own, {expert} (its
    index on the rank)."""
    split: Split = Split.NONE
    before: tuple[int, ...] = ()
    """Rows of the full tensors that are stacked above it in the same parameter."""
    unit: int = 1
    """Rows that stay together (a head); with fewer units than ranks, ranks share one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Hugging Face tensor, or one per layer, or one per expert of each layer."""

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


def table(shape: ModelShape, spec: Spec = Spec.LOCAL) -> tuple[Row, ...]:
    """All rows of a model; every shape in them is of the whole tensor."""
    mixture = shape.family.mixture
    rows = [*_top(shape), *_norms(shape, spec), *_attention(shape)]
    rows += _mlp(shape) if mixture is None else _experts(shape, mixture, spec)
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


def _norms(shape: ModelShape, spec: Spec) -> Iterator[Row]:
    te = spec is Spec.TE
    first = "self_attention.linear_qkv.layer_norm_weight" if te else "input_layernorm.weight"
    dense = te and not shape.num_experts
    second = "mlp.linear_fc1.layer_norm_weight" if dense else "pre_mlp_layernorm.weight"
    yield _same("input_layernorm", shape.hidden, first)
    if shape.family.output_norms:
        yield _same("post_attention_layernorm", shape.hidden, "attention_output_norm.weight")
        yield _same("pre_feedforward_layernorm", shape.hidden, second)
        yield _same("post_feedforward_layernorm", shape.hidden, "mlp_output_norm.weight")
    else:
        yield _same("post_attention_layernorm", shape.hidden, second)
    if shape.qk_norm:
        yield _same("self_attn.q_norm", shape.head_dim, "self_attention.q_layernorm.weight")
        yield _same("self_attn.k_norm", shape.head_dim, "self_attention.k_layernorm.weight")


def _attention(shape: ModelShape) -> Iterator[Row]:
    d = shape.head_dim
    heads = {"q": shape.num_heads * d, "k": shape.num_kv_heads * d, "v": shape.num_kv_heads * d}
    for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
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
        before = (shape.mlp_width,) * i
        yield Row(
            hf=name,
            shape=(shape.mlp_width, shape.hidden),
            trainer=(Place(name=trainer[0], split=Split.ROWS, before=before),),
            rollout=Place(name=rollout[0], split=Split.ROWS, before=before),
            per_expert=expert,
        )
    yield Row(
        hf=names[2],
        shape=(shape.hidden, shape.mlp_width),
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


def _experts(shape: ModelShape, mixture: Mixture, spec: Spec) -> Iterator[Row]:
    layer, mine = "model.layers.{layer}.", "decoder.layers.{layer}.mlp."
    router = f"{layer}{mixture.router}.weight"
    yield Row(
        hf=router,
        shape=(shape.num_experts, shape.hidden),
        trainer=(Place(name=f"{mine}router.weight"),),
        rollout=Place(name=router),
    )
    gate, up, down = (
        f"{layer}{mixture.experts}.{{expert}}.{n}.weight" for n in mixture.expert_names
    )
    if spec is Spec.TE:
        fc1, fc2 = (f"{mine}experts.linear_fc{i}.weight{{expert}}" for i in (1, 2))
    else:
        local = f"{mine}experts.local_experts.{{expert}}"
        fc1, fc2 = (f"{local}.linear_fc{i}.weight" for i in (1, 2))
    engine = f"{layer}{mixture.engine_experts}"
    weights = [f"{engine}.w13_weight", f"{engine}.w2_weight"]
    yield from _gated(shape, (gate, up, down), (fc1, fc2), weights)
