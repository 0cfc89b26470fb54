"""Which ends of the ranks are worth another start, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from passk_fast.checkpoint.store import checkpoint_name
from passk_fast.cluster.ledger import note, read_ledger
from passk_fast.commands.restarts import MAX_RESTARTS, has_begun, max_restarts, restarted
from passk_fast.errors import ConfigError, ExitCode


class Ranks:
    """Ranks that end as a script says: code, message and step of a crash, or a new checkpoint's."""

    def __init__(self, folder: Path, *ends: tuple[int, str, int]) -> None:
        self.folder, self.ends = folder, list(ends)
        self.starts: list[int] = []
        self.said: list[str] = []

    def start(self, before: int, signals: list[int]) -> int:
        self.starts.append(before)
        code, message, step = self.ends.pop(0)
        if message == "SIGTERM":
            signals.append(15)
        elif message:
            (self.folder / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
            note(self.folder, "fault", {"code": code, "message": message, "step": step})
        elif step:
            (self.folder / "checkpoints" / checkpoint_name(step)).mkdir(parents=True)
        return code

    def run(self, limit: int = 3) -> int:
        code = restarted(self.start, self.folder, limit, self.said.append)
        assert self.starts == list(range(len(self.starts)))
        return code


LOST, CRASHED, DONE = (17, "", 0), 1, (0, "", 0)


@pytest.mark.parametrize("code", [code for code in ExitCode if code not in (1, 17)])
def test_a_code_that_says_why_is_the_end(code: ExitCode, tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, (int(code), "", 0), DONE)
    assert ranks.run() == code
    assert ranks.starts == [0]


def test_a_lost_rank_is_started_again(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, LOST, LOST, DONE)
    assert ranks.run() == 0
    assert ranks.said == [
        "A rank was lost. Restart 1 of 3 from the newest good checkpoint.",
        "A rank was lost. Restart 2 of 3 from the newest good checkpoint.",
    ]
    assert [entry["event"] for entry in read_ledger(tmp_path)] == ["restart", "restart"]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_so_often_in_a_row_and_no_more(limit: int, tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, *[LOST] * 9)
    assert ranks.run(limit) == 17
    assert len(ranks.starts) == limit + 1


def test_a_new_checkpoint_begins_the_count_anew(tmp_path: Path) -> None:
    steps = (17, "", 4), LOST, (17, "", 8), LOST, LOST, DONE
    assert Ranks(tmp_path, *steps).run(limit=2) == 17  # the third in a row is one too many
    other = tmp_path / "other"
    other.mkdir()
    ranks = Ranks(other, (17, "", 4), LOST, (17, "", 8), LOST, DONE)
    assert ranks.run(limit=2) == 0


def test_a_fresh_starts_checkpoints_count_though_older_ones_were_later(tmp_path: Path) -> None:
    old = tmp_path / "checkpoints" / checkpoint_name(100)
    old.mkdir(parents=True)

    class Fresh(Ranks):
        def start(self, before: int, signals: list[int]) -> int:
            if old.exists():
                old.rename(tmp_path / "abandoned")
            return super().start(before, signals)

    assert Fresh(tmp_path, (17, "", 4), LOST, (17, "", 8), LOST, DONE).run(limit=2) == 0


def test_fresh_and_resume_are_repeated_until_a_start_has_begun(tmp_path: Path) -> None:
    note(tmp_path, "resume", {"step": 100})  # of an older run
    assert not has_begun(tmp_path, 1)
    note(tmp_path, "fault", {"code": 17})  # killed while it was starting
    assert not has_begun(tmp_path, 1)
    note(tmp_path, "start", {"step": 0})
    assert has_begun(tmp_path, 1)


@pytest.mark.parametrize("other", [5, 6])  # a rank may find the step's record written, or not yet
def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(
    other: int, tmp_path: Path
) -> None:
    same = [(CRASHED, "KeyError: 'x' (a.py:3)", step) for step in (5, other, 5)]
    ranks = Ranks(tmp_path, *same)
    assert ranks.run() == CRASHED
    assert len(ranks.starts) == 2
    assert ranks.said == [
        "An error that nobody foresaw after step 5. Restart 1 of 3 from the newest good "
        "checkpoint.",
        "The same error at the same step twice: it is not tried again.",
    ]


def test_another_error_or_another_step_is(tmp_path: Path) -> None:
    ends = [(CRASHED, "KeyError: 'x' (a.py:3)", step) for step in (5, 7)]
    ranks = Ranks(tmp_path, *ends, (CRASHED, "OSError: y (b.py:1)", 7), DONE)
    assert ranks.run() == 0


def test_a_signal_to_the_launcher_is_the_end(tmp_path: Path) -> None:
    for code in (17, 1, 16):
        ranks = Ranks(tmp_path, (code, "SIGTERM", 0), DONE)
        assert ranks.run() == code
        assert ranks.starts == [0]


def test_the_option() -> None:
    assert max_restarts(None) == MAX_RESTARTS
    assert max_restarts("0") == 0
    assert max_restarts("12") == 12
    for text in ("", "-1", "1.5", "²", "many", "9" * 30):
        with pytest.raises(ConfigError, match="--max-restarts must be a whole number"):
            max_restarts(text)
