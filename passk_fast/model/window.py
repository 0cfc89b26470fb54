"""Sliding-window attention: which layers have it, and how far back a query sees."""

from __future__ import annotations

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import Fields
from passk_fast.model.families import Family

_KINDS = ("full_attention", "sliding_attention")


def read_windows(fields: Fields, family: Family) -> tuple[int, ...]:
    """By layer, how many keys a query sees (0: all before it); empty where all layers see all.

    As transformers reads `sliding_window` and the fields that say where it holds. ConfigError for
    fields of a wrong type, and for windows in some layers only where vLLM cannot compute them.
    """
    switched = family.window in ("switched", "by layer")
    given = family.window != "never" and fields.has("sliding_window")
    if not given or (switched and not fields.flag("use_sliding_window")):
        if family.window == "by layer":
            _refuse_types_without_window(fields)
        return ()
    size, count = fields.count("sliding_window"), fields.count("num_hidden_layers")
    if family.window == "alternating":
        kinds = _layer_types(fields) or [_KINDS[1 - i % 2] for i in range(count)]
        return tuple(size if kind == "sliding_attention" else 0 for kind in kinds)
    if family.window == "by layer":
        _check_all_layers(fields, family)
    return (size,) * count


def _layer_types(fields: Fields) -> list[object] | None:
    """One entry per layer, or None where the field is not set."""
    if not fields.has("layer_types"):
        return None
    types = fields.get("layer_types")
    count = fields.count("num_hidden_layers")
    if not isinstance(types, list) or len(types) != count or any(t not in _KINDS for t in types):
        raise fields.fail("layer_types", f"a list of {count} names out of {', '.join(_KINDS)}")
    return types


def _refuse_types_without_window(fields: Fields) -> None:
    if "sliding_attention" in (_layer_types(fields) or ()):
        raise ConfigError(
            f"{fields.source}: config.json says layer_types with sliding_attention but no window: "
            "use_sliding_window = false or sliding_window = null. Set both, or remove layer_types."
        )


def _check_all_layers(fields: Fields, family: Family) -> None:
    """ConfigError unless the window holds in every layer."""
    types = _layer_types(fields)
    if types is None:
        first = fields.get("max_window_layers")
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise fields.fail("max_window_layers", "a whole number that is not negative")
        windowed, said = first == 0, f"max_window_layers = {first}"
    else:
        windowed = "full_attention" not in types
        said = f"layer_types with {types.count('full_attention')} full_attention"
    if not windowed:
        raise ConfigError(
            f"{fields.source}: config.json says use_sliding_window = true and {said}, which is not "
            f"supported for {family.name!r}: vLLM computes the window in all layers or in none. "
            "Take max_window_layers = 0 without layer_types, or use_sliding_window = false, if the "
            "model was trained so."
        )
