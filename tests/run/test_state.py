"""A checkpoint's state.json that was rewritten, manifest and all, is damage and no traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passk_fast.checkpoint.manifest import CorruptCheckpointError
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.run.checkpoints import check_checkpoint
from passk_fast.run.state import read_state_file

pytestmark = pytest.mark.megatron
ROWS = {"count": 8, "in_order": "a", "in_any_order": "b"}
STATE: dict[str, Any] = {
    "progress": {
        "step": 20,
        "optimizer_step": 40,
        "bad_steps": 0,
        "bad_gap_steps": 0,
        "skipped_steps": 1,
        "zero_advantage_steps": 0,
    },
    "sampling": {
        "order": {"epoch": 1, "position": 3, "num_prompts": 8},
        "informative_share": {"informative": 1.5, "sampled": 2},
        "difficulty": {"num_prompts": 8, "rows": [[3, 1.0, 2.0, 7]]},
    },
    "schedule": {"phase": 0, "best": None, "waited": 0},
    "inputs": {"train": ROWS, "test": ROWS, "model": {"config.json": "c"}},
}


def save(root: Path, text: str) -> Path:
    """A checkpoint of step 20, sealed as it should be, with this state.json."""
    store = CheckpointStore(root, keep=1)
    (store.begin(20) / "state.json").write_text(text)
    return store.commit(20)


def test_a_runs_own_state_passes(tmp_path: Path) -> None:
    folder = save(tmp_path, json.dumps(STATE))
    check_checkpoint(folder)
    assert read_state_file(folder) == STATE
    older = {key: value for key, value in STATE.items() if key != "inputs"}
    check_checkpoint(save(tmp_path, json.dumps(older)))
    newer = {**STATE, "gradient_norms": [0.5, 1], "progress": {**STATE["progress"], "spikes": 2}}
    check_checkpoint(save(tmp_path, json.dumps(newer)))


def at(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The object in a state that the keys lead to."""

    def find(state: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            state = state[key]
        return state

    return find


ORDER, SHARE = at("sampling", "order"), at("sampling", "informative_share")
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no progress": (lambda s: s.pop("progress"), "progress is missing"),
    "no sampling": (lambda s: s.pop("sampling"), "sampling is missing"),
    "no schedule": (lambda s: s.pop("schedule"), "schedule is missing"),
    "no step": (lambda s: s["progress"].pop("step"), "progress.step is missing"),
    "other step": (lambda s: s["progress"].update(step=10), "is of step 10"),
    "negative": (lambda s: s["progress"].update(step=-20), "progress.step is -20"),
    "step as text": (lambda s: s["progress"].update(step="20"), "progress.step is '20'"),
    "step as a truth": (lambda s: s["progress"].update(step=True), "progress.step is True"),
    "step as a float": (lambda s: s["progress"].update(step=20.0), "progress.step is 20.0"),
    "unknown counter": (lambda s: s["progress"].update(x=1), "progress.x is unknown"),
    "progress a list": (lambda s: s.update(progress=[1]), "progress is no object"),
    "no position": (lambda s: ORDER(s).pop("position"), "sampling.order.position is missing"),
    "beyond": (lambda s: ORDER(s).update(position=9), "sampling.order.position is 9 of 8"),
    "share null": (lambda s: SHARE(s).update(sampled=None), "informative_share.sampled is None"),
    "rows short": (
        lambda s: s["sampling"]["difficulty"].update(rows=[[1]]),
        "a row of sampling.difficulty is not four",
    ),
    "rows of text": (
        lambda s: s["sampling"]["difficulty"].update(rows=["abcd"]),
        r"sampling.difficulty.rows\[0\] is no list",
    ),
    "no phase": (lambda s: s["schedule"].pop("phase"), "schedule.phase is missing"),
    "best a list": (lambda s: s["schedule"].update(best=[1]), r"schedule.best is \[1\]"),
    "inputs a list": (lambda s: s.update(inputs=[]), "inputs is no object"),
    "inputs of no rows": (lambda s: s["inputs"].pop("train"), "inputs.train is missing"),
    "norms of text": (lambda s: s.update(gradient_norms=["1"]), r"gradient_norms\[0\] is '1'"),
    "digest a number": (lambda s: s["inputs"]["model"].update(x=1), "inputs.model.x is 1"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_state_is_damage(tmp_path: Path, kind: str) -> None:
    change, message = WRONG[kind]
    state = copy.deepcopy(STATE)
    change(state)
    folder = save(tmp_path, json.dumps(state))
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        check_checkpoint(folder)
    assert str(folder / "state.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"progress"', "7", "\x00", "[" * 100_000])
def test_another_json_is_damage(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, text)
    with pytest.raises(CorruptCheckpointError, match=r"state\.json"):
        check_checkpoint(folder)


def test_a_checkpoint_without_state_is_damage(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    (store.begin(20) / "common.pt").touch()
    with pytest.raises(CorruptCheckpointError, match=r"state\.json cannot be read"):
        check_checkpoint(store.commit(20))
