"""Runs whose processes are killed go on by themselves, and end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from passk_fast.cluster.ledger import read_ledger
from passk_fast.errors import ExitCode
from tests.run.test_end_to_end import COMMAND, CONFIG, SMALL, metrics, train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

STEPS = ("--steps", "8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder, cache of the warm-started model) of eight undisturbed steps."""
    root = tmp_path_factory.mktemp("runs")
    done = train(root / "whole", root / "cache", *STEPS)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "whole", root / "cache"


@contextmanager
def running(folder: Path, cache: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    child = subprocess.Popen(
        [*COMMAND, "train", str(CONFIG), *where, *SMALL, *STEPS, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_of(folder: Path) -> int:
    """The last step that has a record; -1 before the first."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) - 1 if file.exists() else -1


def below(pid: int, depth: int) -> list[psutil.Process]:
    """The processes `depth` levels below one: 1 is torchrun, 2 are the ranks."""
    found = [psutil.Process(pid)]
    for _ in range(depth):
        try:
            found = [child for process in found for child in process.children()]
        except psutil.NoSuchProcess:  # it ended meanwhile
            return []
    return found


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.sample), *range(1, 10)])
def test_a_killed_rank_is_started_again(
    seed: int, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """At a random moment, from the start of the ranks to their last step."""
    drawn = random.Random(seed)
    when, wait = drawn.randrange(-2, 5), drawn.random() / 2
    with running(tmp_path / "run", whole[1]) as child:
        until(lambda: len(below(child.pid, 2)) == 2)
        until(lambda: step_of(tmp_path / "run") >= when)
        time.sleep(wait)
        ranks = below(child.pid, 2)
        drawn.choice(ranks).kill()
        _, said = child.communicate(timeout=240)
    assert child.returncode == 0, said
    assert "A rank was lost" in said, (when, wait)
    assert metrics(tmp_path / "run") == metrics(whole[0])
    events = [entry["event"] for entry in read_ledger(tmp_path / "run")]
    assert events.count("restart") == 1
    assert events[-1] == "end"


def test_a_killed_torchrun_is_started_again(whole: tuple[Path, Path], tmp_path: Path) -> None:
    with running(tmp_path / "run", whole[1]) as child:
        until(lambda: step_of(tmp_path / "run") >= 3)
        ranks = below(child.pid, 2)
        below(child.pid, 1)[0].kill()
        until(lambda: not any(map(lives, ranks)), 10)
        _, said = child.communicate(timeout=240)
    assert child.returncode == 0, said
    assert metrics(tmp_path / "run") == metrics(whole[0])


def test_a_killed_launcher_leaves_no_process_behind(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    with running(tmp_path / "run", whole[1]) as child:
        until(lambda: step_of(tmp_path / "run") >= 1)
        processes = psutil.Process(child.pid).children(recursive=True)
        assert len(processes) >= 3  # torchrun, two ranks, perhaps their helpers
        child.kill()
        until(lambda: not any(map(lives, processes)), 10)
    lines = step_of(tmp_path / "run")
    done = train(tmp_path / "run", whole[1], *STEPS)  # by hand, and at once
    assert done.returncode == 0, done.stderr
    assert lines < 8
    assert metrics(tmp_path / "run") == metrics(whole[0])


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_same_error_twice_ends_the_run(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw: in the record of step 3, on rank 1 alone."""
    (tmp_path / "sitecustomize.py").write_text("""
import os
if os.environ.get("RANK") == "1":
    import passk_fast.run.metrics as metrics
    inner = metrics.step_record
    def step_record(batch, update, schedule, progress, config):
        if progress.step == 2:
            raise KeyError("gold_label")
        return inner(batch, update, schedule, progress, config)
    metrics.step_record = step_record
""")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    done = train(tmp_path / "run", whole[1], *STEPS)
    assert done.returncode == ExitCode.CRASHED, done.stderr
    assert "KeyError: 'gold_label'" in done.stderr
    assert "The same error at the same step twice: it is not tried again." in done.stderr
    ledger = read_ledger(tmp_path / "run")
    assert [entry["event"] for entry in ledger].count("restart") == 1, ledger
    faults = [entry for entry in ledger if entry["event"] == "fault"]
    crashes = [entry for entry in faults if entry["code"] == ExitCode.CRASHED]
    assert [entry["rank"] for entry in crashes] == [1, 1]
    assert all(entry["step"] in (2, 3) for entry in crashes)  # rank 0 may have written its record


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_is_no_loss(
    number: int, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    with running(tmp_path / "run", whole[1]) as child:
        until(lambda: len(below(child.pid, 2)) == 2)
        time.sleep(1.0)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == ExitCode.PREEMPTED, said
    assert "killed, or out of memory" not in said
    assert "Restart" not in said
