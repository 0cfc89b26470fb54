"""Sinks and the report: what is written where, resuming, and silence on other ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from passk_fast.data.types import Prompt, Rollout, RolloutGroup
from passk_fast.errors import DiskError
from passk_fast.report.records import read_records
from passk_fast.report.sinks import JsonlSink, Report, SampleSink, TensorBoardSink


def record(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "reward": step / 7,
        "pass@1": 0.1,
        "pass@k": 0.4,
        "loss": math.nan,
        "time": {"step": 1.5},
    }


def group(name: str, rewards: list[float]) -> RolloutGroup:
    return RolloutGroup(
        prompt=Prompt(id=name, text=f"solve {name} é", answer="RD", task="maze"),
        prompt_ids=(1, 2),
        rollouts=tuple(
            Rollout(token_ids=(3, 4, 5), logprobs=(-1.0,) * 3, text=f"try {i}", finished=i == 0)
            for i in range(len(rewards))
        ),
        rewards=np.array(rewards),
    )


def write_all(sink: JsonlSink, steps: range) -> None:
    for step in steps:
        sink.write(record(step))
    sink.close()


def test_resumed_file_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole" / "metrics.jsonl", tmp_path / "resumed" / "metrics.jsonl"
    write_all(JsonlSink(whole), range(8))
    write_all(JsonlSink(resumed), range(6))
    with resumed.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    write_all(JsonlSink(resumed, resumed_step=4), range(5, 8))
    assert resumed.read_bytes() == whole.read_bytes()


def test_record_is_on_disk_after_every_step(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(record(1))
    assert read_records(tmp_path / "metrics.jsonl") == [record(1) | {"loss": None}]
    sink.close()


def test_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        write_all(JsonlSink(tmp_path / "metrics.jsonl"), range(3))
    assert len(read_records(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_a_disk_error_and_the_others_are_still_closed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    first, last = JsonlSink(tmp_path / "a.jsonl"), JsonlSink(tmp_path / "b.jsonl")
    report = Report([last, first, JsonlSink(tmp_path / "c.jsonl")])
    with pytest.raises(DiskError, match=r"a\.jsonl: cannot write: No space left"):
        report.step(record(1))
    with pytest.raises(DiskError):
        report.close()
    with pytest.raises(ValueError, match="closed file"):
        last.write(record(2))


def test_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        JsonlSink(tmp_path / "file" / "metrics.jsonl")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_tags_and_resume(tmp_path: Path) -> None:
    first = TensorBoardSink(tmp_path)
    for step in range(4):
        first.write(record(step) | {"eval": {"pass@1": 0.5, "k": 8}})
    first.close()
    second = TensorBoardSink(tmp_path, resumed_step=1)
    second.write(record(2) | {"reward": 9.0})
    second.close()
    found = scalars(tmp_path)
    assert set(found) >= {"reward", "pass_at_1", "pass_at_k", "eval/pass_at_1", "time/step"}
    assert not {"loss", "step"} & set(found)
    assert found["reward"] == pytest.approx({0: 0.0, 1: 1 / 7, 2: 9.0})


def test_samples_are_few_and_readable(tmp_path: Path) -> None:
    sink = SampleSink(tmp_path / "samples", num_prompts=2, num_rollouts=2)
    sink.write(10, [group("a", [1.0, 0.0, 0.0]), group("b", [0.0]), group("c", [1.0])])
    text = (tmp_path / "samples" / "step_00010.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["id"], line["reward"], line["finished"]) for line in lines] == [
        ("a", 1.0, True),
        ("a", 0.0, False),
        ("b", 0.0, True),
    ]
    assert lines[0] == {
        "id": "a",
        "prompt": "solve a é",
        "answer": "RD",
        "response": "try 0",
        "tokens": 3,
        "finished": True,
        "reward": 1.0,
    }


def test_samples_after_the_resumed_step_go(tmp_path: Path) -> None:
    sink = SampleSink(tmp_path)
    for step in (10, 20, 30):
        sink.write(step, [group("a", [1.0])])
    SampleSink(tmp_path, resumed_step=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00010.jsonl",
        "step_00020.jsonl",
    ]
    SampleSink(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_writes_everything_on_rank_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Report.open(tmp_path, rank=0, total_steps=2, k=8) as report:
        report.step(record(1))
        report.samples(1, [group("a", [1.0])])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "samples",
        "tensorboard",
    ]
    assert capsys.readouterr().out.startswith("step 1/2  reward 0.143")


def test_report_is_silent_on_other_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Report.open(tmp_path, rank=1, total_steps=2, k=8) as report:
        report.step(record(1))
        report.samples(1, [group("a", [1.0])])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
