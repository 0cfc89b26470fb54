"""Every field of every family's allow-list: computed as transformers does, harmless, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from passk_fast.errors import ConfigError
from passk_fast.model.families import FAMILIES
from passk_fast.model.fields import Only, Use
from passk_fast.model.shape import ModelShape
from tests.actor.field_workers import logits_of, logits_under, make_folder
from tests.actor.workers import make_sequences
from tests.config_fields import HARMLESS, REFUSED, Case, base_config, cases
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.actor.field_workers"
COMPUTED = [(family, name) for family in FAMILIES for name in cases(family)]
REFUSED_THROUGHOUT = [
    *((family, entry.activation_field) for family, entry in FAMILIES.items()),
    ("qwen2", "head_dim"),
]
"""What is read and may have one value only."""
KNOWN_VALUES = [
    (family, field)
    for family, entry in FAMILIES.items()
    for field, rule in entry.fields.items()
    if isinstance(rule, Only)
]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_is_silent(family: str) -> None:
    """Every rule has an example that fits it, and transformers has no field without a rule."""
    shown = {field for case in cases(family).values() for field in case.fields}
    for field, rule in FAMILIES[family].fields.items():
        if isinstance(rule, Only):
            assert field in REFUSED, field
        elif rule is Use.HARMLESS:
            assert field in HARMLESS, field
        else:
            elsewhere = field == "final_logit_softcapping"  # tests/actor/test_gemma2.py
            assert field in shown or (family, field) in REFUSED_THROUGHOUT or elsewhere, field
    theirs = AutoConfig.for_model(family).to_dict()
    assert theirs.keys() - FAMILIES[family].fields.keys() == set()


@pytest.mark.parametrize(("family", "field"), KNOWN_VALUES)
def test_other_values_are_refused_by_name(family: str, field: str) -> None:
    ModelShape.parse(base_config(family))
    for change in REFUSED[field]:
        if family == "qwen2" and field == "attention_bias":
            change = {field: False}
        with pytest.raises(ConfigError, match=f"^model: config.json says .*{field}.*'{family}': "):
            ModelShape.parse(base_config(family) | change)


@pytest.mark.parametrize(
    ("family", "field"),
    REFUSED_THROUGHOUT
    + [(f, field) for f in ("qwen2", "qwen3") for field in ("layer_types", "max_window_layers")]
    + [(f, "sliding_window") for f in ("mistral", "mixtral", "qwen3_moe", "qwen2", "qwen3")],
)
def test_values_that_the_sampler_cannot_compute_are_refused_by_name(
    family: str, field: str
) -> None:
    for change in REFUSED[field]:
        if field == "sliding_window" and change[field]:
            continue
        if field == "layer_types":
            change = {**change, "use_sliding_window": True, "sliding_window": 5}
        with pytest.raises(ConfigError, match=f"^model: config.json says .*{field}"):
            ModelShape.parse(base_config(family) | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_that_no_rule_names_is_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="says shared_expert_width = 8, a field that is not"):
        ModelShape.parse({**base_config(family), "shared_expert_width": 8})
    ModelShape.parse({**base_config(family), "shared_expert_width": None})


@pytest.mark.parametrize("family", FAMILIES)
def test_harmless_fields_change_no_logits(family: str, tmp_path: Path) -> None:
    fields = {
        field: HARMLESS[field]
        for field, rule in FAMILIES[family].fields.items()
        if rule is Use.HARMLESS
    }
    config = base_config(family)
    sequences = make_sequences(2)
    with torch.no_grad():
        before = logits_of(make_folder(config, tmp_path), sequences)
    after = logits_under(config | fields, tmp_path, sequences)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert ModelShape.parse(config | fields) == ModelShape.parse(config)


def check(pool: RankPool, family: str, case: Case, parallel: dict[str, Any], **more: Any) -> None:
    config = base_config(family) | case.change
    other = None if case.base is None else base_config(family) | case.base
    answers = pool.run(f"{W}:compare", config, other, parallel, **more)
    assert max(a["logits"] for a in answers) <= 1e-4
    assert max(a["logits"] for a in answers) > 0.0  # something was compared
    assert max(a["gradients"] for a in answers) <= 1e-4
    assert max(a["changed"] for a in answers) >= 1e-2  # the field is no decoration


@pytest.mark.parametrize(("family", "name"), COMPUTED)
def test_computed_fields_agree_with_transformers(
    one_rank: RankPool, family: str, name: str
) -> None:
    check(one_rank, family, cases(family)[name], {})


ON_MESHES = [
    ("mistral", "window", {"tensor": 2}),
    ("mistral", "window", {"pipeline": 2}),
    ("mistral", "window", {"context": 2}),
    ("qwen3_moe", "window", {"context": 2}),
    ("llama", "biases", {"tensor": 2}),
    ("llama", "attention_bias", {"tensor": 2}),
    ("llama", "mlp_bias", {"pipeline": 2}),
    ("qwen3", "yarn", {"tensor": 2}),
    ("qwen2", "yarn", {"context": 2}),
]


@pytest.mark.parametrize(
    ("family", "name", "mesh"),
    [pytest.param(f, n, m, id=f"{f}-{n}-{next(iter(m))}2") for f, n, m in ON_MESHES],
)
def test_computed_fields_agree_with_transformers_on_meshes(
    two_ranks: RankPool, family: str, name: str, mesh: dict[str, int]
) -> None:
    check(two_ranks, family, cases(family)[name], mesh)


@pytest.mark.parametrize("mesh", [{}, {"context": 2}], ids=["one-rank", "context2"])
def test_windows_reach_into_a_shared_prompt(
    one_rank: RankPool, two_ranks: RankPool, mesh: dict[str, int]
) -> None:
    pool = two_ranks if mesh else one_rank
    check(pool, "mistral", cases("mistral")["window"], mesh, share_prompts=True)
