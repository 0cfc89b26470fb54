"""What the doctor says of run folders of every kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.cluster.exit_code_file import write_exit_code
from passk_fast.cluster.ledger import LEDGER, note
from passk_fast.commands.doctor import ADVICE, command
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.run.lock import RunLock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 9 steps with checkpoints of steps 2 and 4, which went on to step 5."""
    (tmp_path / "config.toml").write_text("steps = 9\n")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(6)))
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for step in (2, 4):
        (store.begin(step) / "weights").write_bytes(b"w" * step)
        store.commit(step)
    note(tmp_path, "start", {"step": 0, "world_size": 2, "versions": {"torch": "2.13.0"}})
    return tmp_path


def diagnosis(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command([str(folder)]) in (ExitCode.DONE, ExitCode.BAD_DATA)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return capsys.readouterr().out


@pytest.mark.parametrize("code", ExitCode)
def test_every_end_has_its_advice(
    code: ExitCode, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(folder, "end", {"rank": 0, "code": int(code), "step": 5})
    write_exit_code(folder, code)
    said = diagnosis(folder, capsys)
    assert said.startswith(f"{folder}: step 5 of 9\n")
    assert "intact checkpoints: 2, 4\n" in said
    assert said.endswith(f"exit code {int(code)}. {ADVICE[code]}\n")


def test_faults_and_their_cause(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note(folder, "fault", {"rank": 1, "code": 1, "step": 5, "message": "KeyError: 'x' (a.py:3)"})
    lost = "A rank was lost or a collective timed out: " + "pair.cc " * 100
    note(folder, "fault", {"rank": 0, "code": 17, "step": 5, "message": lost})
    note(folder, "restart", {"code": 1})
    note(folder, "resume", {"step": 4, "world_size": 2, "versions": {"torch": "2.13.0"}})
    write_exit_code(folder, ExitCode.DONE)  # of a time before
    said = diagnosis(folder, capsys)
    assert "history: 1 start at step 0, 1 resume, 1 restart by itself, 2 faults, from 20" in said
    assert "from step 4, 2 ranks, rank 0 on " in said
    cause, effect = [line for line in said.splitlines() if line.startswith("fault: ")]
    assert cause.endswith("after step 5, exit code 1: KeyError: 'x' (a.py:3)")
    assert "rank 0 on " in effect
    assert effect.endswith(" ...")
    assert len(effect) < 450
    assert "It ended without a word" in said


def test_a_damaged_checkpoint_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "checkpoints" / "step_00000004" / "weights").write_bytes(b"wwwx")
    assert command([str(folder)]) == ExitCode.BAD_DATA
    said = capsys.readouterr().out
    assert "intact checkpoints: 2\n" in said
    assert "damaged checkpoint of step 4: " in said
    assert "weights does not match its SHA-256" in said


OWNER = """
import sys, time
from pathlib import Path
from passk_fast.run.lock import RunLock
lock = RunLock.take(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def test_a_run_that_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        command([str(folder)])
        owner.kill()
    assert f"process {owner.pid}, since 20" in capsys.readouterr().out
    lock = RunLock.take(folder)  # asking has taken nothing away
    lock.release()


def test_an_old_run_and_no_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / LEDGER).unlink()
    write_exit_code(folder, ExitCode.DONE)
    assert "there is no ledger" in diagnosis(folder, capsys)
    with pytest.raises(ConfigError, match="is no run folder"):
        command([str(folder / "checkpoints")])
    for wrong in ([], ["a", "b"], ["--help"]):
        with pytest.raises(ConfigError, match="usage: passk-fast doctor RUN"):
            command(wrong)
