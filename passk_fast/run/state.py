"""What a checkpoint keeps besides tensors, and the check of a `state.json` that is read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from passk_fast.checkpoint.manifest import CorruptCheckpointError, checkpoint_name
from passk_fast.run.progress import Progress

if TYPE_CHECKING:
    from passk_fast.advantage.schedule import ScheduleState
    from passk_fast.run.inputs import Inputs
    from passk_fast.run.sampling import SamplingState

STATE_FILE = "state.json"


class RunState(TypedDict):
    """JSON values."""

    progress: dict[str, int]
    sampling: SamplingState
    schedule: ScheduleState
    inputs: NotRequired[Inputs]
    """Checkpoints of earlier versions have none."""
    gradient_norms: NotRequired[list[float]]
    """The last ones; earlier versions' checkpoints have none."""
    record: NotRequired[Mapping[str, object]]
    """The step's: a process that dies behind its checkpoint has not reported it. Earlier versions'
    have none."""


Form = type | tuple[type, ...] | dict[str, "Form"] | list["Form"]
"""A JSON value: of one of some types, an object with exactly these keys, or a list of such values.
A key that ends with "?" may be missing; the key "" stands for any number of keys."""

_NUMBER = (int, float)
_LATER = {"spikes"}
"""Counters that checkpoints of earlier versions do not have."""
_ROWS: Form = {"count": int, "in_order": str, "in_any_order": str}
_FORM: Form = {
    "progress": {
        field.name + "?" * (field.name in _LATER): int for field in dataclasses.fields(Progress)
    },
    "sampling": {
        "order": {"epoch": int, "position": int, "num_prompts": int},
        "informative_share": {"informative": _NUMBER, "sampled": _NUMBER},
        "difficulty": {"num_prompts": int, "rows": [[_NUMBER]]},
    },
    "schedule": {"phase": int, "best": (int, float, type(None)), "waited": int},
    "gradient_norms?": [_NUMBER],
    "record?": dict,
    "inputs?": {"train": _ROWS, "test": _ROWS, "model": {"": str}},
}


def read_state_file(folder: Path) -> RunState:
    """The state in a checkpoint folder.

    Raises:
        CorruptCheckpointError: it is not JSON of a run's state, or of another step than the folder.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    wrong = _difference(state, _FORM, "") or _out_of_bounds(state)
    if wrong:
        raise CorruptCheckpointError(f"{path} does not hold the state of a run: {wrong}.")
    step = state["progress"]["step"]
    if checkpoint_name(step) != folder.name:
        raise CorruptCheckpointError(f"{path} is of step {step}.")
    return cast(RunState, state)


def _difference(value: object, form: Form, name: str) -> str:
    """How a value differs from its form, in words; empty where it does not."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{name or 'it'} is no object"
        known = {key.removesuffix("?") for key in form}
        for key in [key for key in form if key and not key.endswith("?")]:
            if key not in value:
                return f"{_dotted(name, key)} is missing"
        for key, entry in value.items():
            if key not in known and "" not in known:
                return f"{_dotted(name, key)} is unknown"
            found = _difference(entry, _form_of(form, key), _dotted(name, key))
            if found:
                return found
        return ""
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        found_each = (_difference(v, form[0], f"{name}[{i}]") for i, v in enumerate(value))
        return next(filter(None, found_each), "")
    # JSON's true and false are whole numbers to Python, and not to us.
    if isinstance(value, bool) or not isinstance(value, form):
        return f"{name} is {value!r:.40}"
    return ""


def _form_of(form: dict[str, Form], key: str) -> Form:
    return form.get(key) or form.get(f"{key}?") or form[""]


def _dotted(*names: str) -> str:
    return ".".join(filter(None, names))


def _out_of_bounds(state: RunState) -> str:
    """The first number of a well-formed state that no run has, in words; or nothing."""
    for name, count in state["progress"].items():
        if count < 0:
            return f"progress.{name} is {count}"
    order, rows = state["sampling"]["order"], state["sampling"]["difficulty"]["rows"]
    if order["epoch"] < 0 or not 0 <= order["position"] <= order["num_prompts"]:
        return f"sampling.order.position is {order['position']} of {order['num_prompts']}"
    if state["schedule"]["phase"] < 0:
        return f"schedule.phase is {state['schedule']['phase']}"
    assert isinstance(rows, list)
    return "" if all(len(row) == 4 for row in rows) else "a row of sampling.difficulty is not four"
