"""Where a run begins when checkpoints are damaged, lost, or asked for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from passk_fast.checkpoint.manifest import CorruptCheckpointError, verify_checkpoint
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.commands.arguments import take_start
from passk_fast.commands.convert import locate
from passk_fast.config import CheckpointConfig
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.run.folder import move_aside
from passk_fast.run.start import Start, find_start
from tests.checkpoint.cases import save
from tests.run.cases import config

NEWEST = Start()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Of a run folder with checkpoints of steps 10 and 20."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for step in (10, 20):
        save(store, step)
    return store


def find(store: CheckpointStore, start: Start = NEWEST, recorded: int = 25) -> Path | None:
    return find_start(store, start, recorded, verify_checkpoint)


def damage(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        (store.path(step) / "common.pt").write_bytes(bytes(300))


def test_the_newest_intact_one_is_taken(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(store) == store.path(20)
    damage(store, 20)
    with caplog.at_level(logging.WARNING):
        assert find(store) == store.path(10)
    assert f"{store.path(20)}/common.pt does not match its SHA-256" in caplog.messages[0]


def test_where_all_are_damaged_nothing_is_started_over(store: CheckpointStore) -> None:
    damage(store, 10, 20)
    with pytest.raises(CorruptCheckpointError) as caught:
        find(store)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    said = str(caught.value)
    for step in (10, 20):
        assert f"{store.path(step)}/common.pt does not match its SHA-256." in said
    assert "--resume STEP" in said
    assert "--fresh" in said
    assert "\n" not in said


@pytest.mark.parametrize("lost", ["folder", "its checkpoints"])
def test_lost_checkpoints_are_missed_where_steps_are_recorded(
    store: CheckpointStore, tmp_path: Path, lost: str
) -> None:
    for step in (10, 20):
        store.path(step).rename(tmp_path / f"moved {step}")
    if lost == "folder":
        store.root.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"records this run up to step 25\. .*--fresh"):
        find(store)
    assert find(store, recorded=0) is None


def test_a_run_that_ended_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    store.root.mkdir()
    assert find(store) is None
    (store.begin(10) / "half").touch()  # killed while it saved
    assert find(store) is None


def test_a_step_can_be_asked_for(store: CheckpointStore) -> None:
    damage(store, 20)
    assert find(store, Start(step=10)) == store.path(10)
    with pytest.raises(CorruptCheckpointError, match=r"--resume 20: .*step_00000020/common\.pt"):
        find(store, Start(step=20))
    with pytest.raises(ConfigError, match=r"no checkpoint of that step; there are 10, 20\."):
        find(store, Start(step=15))
    damage(store, 10)
    assert find(store, Start(fresh=True)) is None


def test_what_is_moved_aside_is_a_run_folder_of_its_own(
    store: CheckpointStore, tmp_path: Path
) -> None:
    kept = ("LOCK", "exit_code", "initial_model")
    moved = ("metrics.jsonl", "config.toml", "curve.png", "curve.svg", "inputs.json")
    for name in (*kept, *moved):
        (tmp_path / name).write_text(name)
    assert move_aside(tmp_path) == tmp_path / "abandoned-1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LOCK", "abandoned-1", *kept[1:]]
    assert sorted(path.name for path in (tmp_path / "abandoned-1").iterdir()) == sorted(
        ["checkpoints", *moved]
    )
    newest = tmp_path / "abandoned-1" / "checkpoints" / "step_00000020"
    verify_checkpoint(newest)
    assert locate(tmp_path / "abandoned-1") == (tmp_path / "abandoned-1", newest)
    assert move_aside(tmp_path) is None
    (tmp_path / "metrics.jsonl").touch()
    assert move_aside(tmp_path) == tmp_path / "abandoned-2"


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ([], NEWEST),
        (["--resume", "20"], Start(step=20)),
        (["--resume=20"], Start(step=20)),
        (["--fresh"], Start(fresh=True)),
    ],
)
def test_the_command_line_says_where_to_begin(given: list[str], start: Start) -> None:
    arguments = ["a.toml", *given, "--optim.lr", "1"]
    assert take_start(arguments) == start
    assert arguments == ["a.toml", "--optim.lr", "1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--resume", "20", "--fresh"], "exclude each other"),
        (["--resume", "last"], "--resume must be a positive number, got 'last'"),
        (["--resume", "0"], "--resume must be a positive number, got '0'"),
        (["--resume"], "--resume needs a value"),
    ],
)
def test_what_the_command_line_may_not_say(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_start(["a.toml", *given])


def test_without_resuming_every_start_is_fresh() -> None:
    never = replace(config(), checkpoint=CheckpointConfig(resume=False))
    assert NEWEST.under(never) == Start(fresh=True)
    assert NEWEST.under(config()) == NEWEST
    with pytest.raises(ConfigError, match=r"--resume 20 with checkpoint\.resume = false"):
        Start(step=20).under(never)
