"""`passk-fast doctor`: reads a run folder and says what happened to the run and what to do."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

from passk_fast.checkpoint.manifest import CorruptCheckpointError, verify_checkpoint
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.cluster.exit_code_file import read_exit_code
from passk_fast.cluster.ledger import Entry, read_ledger
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.report.records import last_step
from passk_fast.report.sinks import METRICS_FILE
from passk_fast.run.lock import is_owned, owner_of

ADVICE = {
    ExitCode.DONE: "It is done. `passk-fast convert` writes a Hugging Face folder.",
    ExitCode.CRASHED: "An error that nobody foresaw, which would come again: see the last fault. "
    "The traceback is in what the run printed; report it.",
    ExitCode.BAD_CONFIG: "The configuration or model folder cannot be used: see the last fault.",
    ExitCode.BAD_DATA: "The data, or all checkpoints, cannot be used: see the last fault.",
    ExitCode.PREEMPTED: "It was stopped by a signal. The same command goes on.",
    ExitCode.LOST_RANK: "Ranks were lost again and again. Look for the killed process (out of "
    "memory: `dmesg`), then give the same command.",
    ExitCode.DISK: "The disk was full or not writable. Make room, then give the same command.",
    ExitCode.DIVERGED: "The numbers went wrong: see the last fault. `--resume STEP` goes back to "
    "an older checkpoint, with a lower optim.lr for instance.",
    ExitCode.NO_SIGNAL: "No group had a gradient: see the last fault, which says whether the task "
    "is too hard or too easy.",
}
"""What to do after an exit code."""
_KILLED = (
    "It ended without a word, as when the whole machine goes down. The same command goes on from "
    "the newest intact checkpoint."
)
_LONGEST = 300
"""Characters of a fault's message."""


def command(arguments: list[str]) -> ExitCode:
    """Print the diagnosis of `RUN`; BAD_DATA where a checkpoint is damaged, else DONE.

    Nothing in the folder is changed. ConfigError where it is no run's.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("usage: passk-fast doctor RUN: the folder of a run (its output_dir).")
    folder = Path(arguments[0])
    entries, reached = read_ledger(folder), last_step(folder / METRICS_FILE)
    if not entries and not (folder / METRICS_FILE).is_file():
        raise ConfigError(
            f"{folder} is no run folder: it has neither ledger.jsonl nor metrics.jsonl."
        )
    checkpoints, damaged = _checkpoints(folder)
    steps = _steps(folder)
    print(f"{folder}: step {reached}" + (f" of {steps}" if steps else ""))
    for line in [*_history(entries), *checkpoints, *_outcome(folder, entries)]:
        print(line)
    return ExitCode.BAD_DATA if damaged else ExitCode.DONE


def _steps(folder: Path) -> int | None:
    """The steps that the run is to take; None where its config.toml is not there yet."""
    try:
        steps = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError):
        return None
    return int(steps)


def _history(entries: list[Entry]) -> list[str]:
    counts = Counter(entry["event"] for entry in entries)
    if not entries:
        return ["history: there is no ledger: an older version ran."]
    lines = [
        f"history: {_many(counts['start'], 'start')} at step 0, "
        f"{_many(counts['resume'], 'resume')}, {_many(counts['restart'], 'restart')} by itself, "
        f"{_many(counts['fault'], 'fault')}, "
        f"from {_when(entries[0])} to {_when(entries[-1])}"
    ]
    begun = [entry for entry in entries if entry["event"] in ("start", "resume")]
    if begun:
        last = begun[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        lines.append(
            f"last start: {_when(last)} from step {last['step']}, {last['world_size']} ranks, rank "
            f"0 on {last['host']}; {versions}"
        )
    faults = [entry for entry in entries if entry["event"] == "fault"]
    for entry in _last_faults(faults):
        message = " ".join(entry.get("message", "no message").split())
        if len(message) > _LONGEST:
            message = message[:_LONGEST] + " ..."
        lines.append(
            f"fault: {_when(entry)} rank {entry['rank']} on {entry['host']}, after step "
            f"{entry['step']}, exit code {entry['code']}: {message}"
        )
    return lines


def _last_faults(faults: list[Entry]) -> list[Entry]:
    """The last fault, and before it the last of another kind than a lost rank: its cause, often."""
    causes = [entry for entry in faults if entry["code"] != ExitCode.LOST_RANK]
    return [*causes[-1:], *[entry for entry in faults[-1:] if entry not in causes[-1:]]]


def _checkpoints(folder: Path) -> tuple[list[str], bool]:
    """A line for all intact checkpoints, one for each damaged; whether there is a damaged one."""
    store = CheckpointStore(folder / "checkpoints", keep=1)
    intact, lines = [], []
    for step in store.steps():
        try:
            verify_checkpoint(store.path(step))
        except CorruptCheckpointError as error:
            lines.append(f"damaged checkpoint of step {step}: {error}")
        else:
            intact.append(step)
    good = ", ".join(map(str, intact)) if intact else "none"
    return [f"intact checkpoints: {good}", *lines], bool(lines)


def _outcome(folder: Path, entries: list[Entry]) -> list[str]:
    if is_owned(folder):
        owner = owner_of(folder)
        return [
            f"It is running on host {owner.get('host')}, process {owner.get('pid')}, since "
            f"{owner.get('started')}."
        ]
    code = read_exit_code(folder)
    last = entries[-1]["event"] if entries else "end"
    if code is None or (code == ExitCode.DONE and last in ("start", "resume", "restart")):
        return [_KILLED]
    return [f"exit code {int(code)}. {ADVICE[code]}"]


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _when(entry: Entry) -> str:
    return entry["time"][:19].replace("T", " ")
