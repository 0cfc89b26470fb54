"""Sliding-window attention: which layers have it, and how far back a query sees."""

from __future__ import annotations

from dataclasses import dataclass

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import Fields
from passk_fast.model.families import Family


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window of `size` keys in some or all layers.

    Example: Gemma-2's size 4096 with layers (True, False) has a window in layers 0, 2, 4 and so on.
    """

    size: int = 0
    """Keys that a query of such a layer sees, its own included; 0: all keys in all layers."""
    layers: tuple[bool, ...] = (True,)
    """Whether layer i has the window: entry i modulo the length."""

    def of(self, layer: int) -> int:
        """The window of a layer (global index); 0 for full attention."""
        return self.size if self.layers[layer % len(self.layers)] else 0


NO_WINDOW = Window()
"""Full attention in every layer."""


def read_window(fields: Fields, family: Family) -> Window:
    """As transformers reads `sliding_window` and the fields that say where it holds.

    ConfigError for fields of a wrong type, and for windows that differ from layer to layer, which
    vLLM cannot compute for these families.
    """
    if family.window == "never":
        return NO_WINDOW
    switched = family.window != "given"
    if not fields.has("sliding_window") or (switched and not fields.flag("use_sliding_window")):
        _refuse_types_without_window(fields)
        return NO_WINDOW
    size = fields.count("sliding_window")
    if family.window == "by layer":
        _check_all_layers(fields, family)
    return Window(size=size)


def _layer_types(fields: Fields) -> list[object] | None:
    """One entry per layer, or None where the field is not set."""
    if not fields.has("layer_types"):
        return None
    types = fields.get("layer_types")
    count = fields.count("num_hidden_layers")
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != count or any(t not in known for t in types):
        raise fields.fail(
            "layer_types", f"a list of {count} (num_hidden_layers) of {' and '.join(known)}"
        )
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
