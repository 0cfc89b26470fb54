"""What `passk-fast eval` writes: pass@k by task, and by part of a task, such as a maze's size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from passk_fast.advantage.metrics import (
    evaluation,
    powers_of_two,
    real_evaluation,
    wrong_distinct_share,
)
from passk_fast.data.types import Prompt, RolloutGroup


class Origin(TypedDict):
    """What was evaluated: JSON values."""

    model: str
    """As it was asked for: a Hugging Face folder, a run folder, or a checkpoint."""
    checkpoint: str | None
    """Folder of the checkpoint that was evaluated; None for a Hugging Face folder."""
    step: int | None
    """Steps that the checkpoint had been trained for."""


class EvaluationRecord(Origin):
    """The whole record: JSON values."""

    config: str
    temperature: float
    top_p: float
    seed: int
    truncated: str
    """`rollout.truncated`."""
    held_out_prompts: int
    """Of the whole split; --eval.num-prompts may take fewer."""
    tasks: dict[str, dict[str, object]]
    """Task -> `task_record`, with the number of "verifier_failures"."""


def task_record(
    groups: Sequence[RolloutGroup], k: int, part_of: Callable[[Prompt], str] | None = None
) -> dict[str, object]:
    """Pass@k of one task with intervals and errors, and how its responses spread.

    Keys: those of `evaluation` (k is lowered to the number of responses where there are fewer);
    with rewards other than 0 and 1 those of `real_evaluation`; "reward", "correct_histogram",
    "wrong_distinct_share", "truncated_share"; and "parts", the same of the groups of each part that
    `part_of` names, where it names any.
    """
    from passk_fast.tasks import answer_of

    rewards_PN = np.stack([group.rewards for group in groups])
    n = rewards_PN.shape[1]
    k = min(k, n)
    correct_P = (rewards_PN == 1.0).sum(axis=1)
    record: dict[str, object] = {
        **evaluation(correct_P, n, k),
        **real_evaluation(rewards_PN, k),
        "reward": float(rewards_PN.mean()),
        "correct_histogram": np.bincount(correct_P, minlength=n + 1).tolist(),
        "wrong_distinct_share": wrong_distinct_share(groups, answer_of),
        "truncated_share": float(np.mean([group.truncated for group in groups])),
    }
    if part_of is not None:
        record |= _by_part(groups, k, part_of)
    return record


def _by_part(
    groups: Sequence[RolloutGroup], k: int, part_of: Callable[[Prompt], str]
) -> dict[str, object]:
    parts: dict[str, list[RolloutGroup]] = {}
    for group in groups:
        parts.setdefault(part_of(group.prompt), []).append(group)
    if set(parts) == {""}:
        return {}
    return {"parts": {name or "other": task_record(part, k) for name, part in parts.items()}}


def as_table(record: EvaluationRecord) -> str:
    """A table for people: what was evaluated, then a row per task and per part of it.

    pass@k, and max@k of real rewards, for all powers of two; standard errors in brackets.
    """
    settings = f"temperature {record['temperature']:g}, top_p {record['top_p']:g}"
    lines = [f"{_named(record)}: {settings}"]
    taken = sum(_number(values, "prompts") for values in record["tasks"].values())
    if taken < record["held_out_prompts"]:
        lines.append(f"the first {taken} of {record['held_out_prompts']} held-out prompts")
    for task, values in record["tasks"].items():
        lines += _rows(task, values)
        parts = values.get("parts")
        for part, of_part in parts.items() if isinstance(parts, dict) else ():
            lines += _rows(f"  {part}", of_part)
    return "\n".join(lines)


def _named(origin: Origin) -> str:
    if origin["checkpoint"] is None:
        return origin["model"]
    return f"{origin['checkpoint']} (step {origin['step']})"


def _rows(name: str, values: Mapping[str, object]) -> list[str]:
    powers = powers_of_two(_number(values, "rollouts"))
    head = f"{name}, {values['prompts']} prompts x {values['rollouts']}: "
    rows = [head + _scores(values, [f"pass@{k}" for k in powers])]
    if "max@k" in values:
        names = ["mean_reward" if k == 1 else f"max@{k}" for k in powers]
        rows.append(" " * len(head) + _scores(values, names))
    return rows


def _scores(values: Mapping[str, object], names: Sequence[str]) -> str:
    return "  ".join(f"{key} {values[key]:.3f} ({values[f'{key}_se']:.3f})" for key in names)


def _number(values: Mapping[str, object], key: str) -> int:
    number = values[key]
    assert isinstance(number, int), "as `task_record` says"
    return number
