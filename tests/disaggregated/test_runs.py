"""Whole runs in the disaggregated layout, as a user starts them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from passk_fast.cluster.exit_code_file import read_exit_code
from passk_fast.errors import ExitCode
from passk_fast.report.records import read_records
from tests.run.test_end_to_end import COMMAND, CONFIG, SMALL, metrics, train

pytestmark = [pytest.mark.slow, pytest.mark.megatron]

AHEAD = """
    --rollout.max-off-policy-steps 1 --loss.tis-clip 2 --device cpu
    --loss.entropy-coef 0.01 --checkpoint.every 4
""".split()
ONE_AND_ONE = [*AHEAD, "--nproc", "2", "--rollout.dedicated-ranks", "1"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads are rounded otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warm-started models of this module's runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def disaggregated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Four steps of one trainer rank and one rollout rank."""
    folder = tmp_path_factory.mktemp("runs") / "disaggregated"
    done = train(folder, cache, "--steps", "4", *ONE_AND_ONE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.sample
def test_a_disaggregated_run_is_the_colocated_run(
    disaggregated: Path, cache: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "one", cache, "--steps", "4", *AHEAD, "--nproc", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    records = metrics(disaggregated)
    assert records == metrics(tmp_path / "one")
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert [record["off_policy_steps"] for record in records[1:]] == [0, 1, 0, 1]
    # On policy: what the first sync, and the third, left in the engine is what was trained.
    for fresh, late in ((records[1], records[2]), (records[3], records[4])):
        assert fresh["logprob_gap_max"] <= 1e-4 < late["logprob_gap_max"]
    times = [record["time"] for record in read_records(disaggregated / "metrics.jsonl")]
    assert ["overlap_sampling_s" in time for time in times] == [False, False, True, False, True]


def test_a_colocated_run_goes_on_disaggregated(
    disaggregated: Path, cache: Path, tmp_path: Path
) -> None:
    """From a checkpoint of the other layout, as if it had been disaggregated from the beginning."""
    for steps, options in (("2", [*AHEAD, "--nproc", "1"]), ("4", ONE_AND_ONE)):
        done = train(tmp_path, cache, "--steps", steps, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming from step 2" in done.stdout
    assert metrics(tmp_path) == metrics(disaggregated)


MESHES = {
    "tp2-tp2": "--parallel.tensor 2 --rollout.tensor 2",
    "pp2-dp2": """
        --parallel.pipeline 2 --rollout.early-stop --rollout.verify-processes 1
        --rollout.dynamic-sampling 2 --algorithm.loss-denominator informative_tokens
        --data.curriculum 0.5 --loss.entropy-coef 0
    """,
}


@pytest.mark.parametrize("mesh", MESHES)
def test_two_and_two_ranks_do_what_two_do(cache: Path, tmp_path: Path, mesh: str) -> None:
    options = ["--steps", "2", *AHEAD, *MESHES[mesh].split()]
    for name, ranks in (
        ("disaggregated", ["4", "--rollout.dedicated-ranks", "2"]),
        ("colocated", ["2"]),
    ):
        done = train(tmp_path / name, cache, *options, "--nproc", *ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "disaggregated") == metrics(tmp_path / "colocated")


def start(folder: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
    """A run without end, after its first steps."""
    where = ["--output-dir", str(folder), "--warm-start.cache-dir", str(cache)]
    child = subprocess.Popen(
        [*COMMAND, "train", str(CONFIG), *where, *SMALL, *options, "--steps", "5000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 150
    while time.monotonic() < deadline and child.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) > 2:
            break
        time.sleep(0.2)
    return child


def ranks_of(pid: int) -> dict[int, psutil.Process]:
    """torchrun's workers by rank."""
    (launcher,) = psutil.Process(pid).children()
    return {int(worker.environ()["RANK"]): worker for worker in launcher.children()}


@pytest.mark.parametrize(
    ("rank", "reason"),
    [(2, "Trainer rank 0 has lost rollout rank 2"), (0, "has lost trainer rank 0")],
)
def test_a_killed_rank_ends_both_sides(cache: Path, tmp_path: Path, rank: int, reason: str) -> None:
    child = start(tmp_path / "run", cache, *AHEAD, "--nproc", "3", "--rollout.dedicated-ranks", "2")
    workers = ranks_of(child.pid)
    assert sorted(workers) == [0, 1, 2]
    workers[rank].kill()
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == ExitCode.LOST_RANK, stderr
    assert reason in stderr
    assert not any(worker.is_running() for worker in workers.values())


def test_sigterm_saves_and_both_sides_leave(cache: Path, tmp_path: Path) -> None:
    child = start(tmp_path / "run", cache, *ONE_AND_ONE)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == ExitCode.PREEMPTED, stderr
    steps = [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    latest = (tmp_path / "run" / "checkpoints" / "LATEST").read_text().strip()
    assert latest == f"step_{steps[-1]:08d}"


def test_a_signal_to_a_rollout_rank_alone_stops_the_run(cache: Path, tmp_path: Path) -> None:
    child = start(tmp_path / "run", cache, *ONE_AND_ONE)
    ranks_of(child.pid)[1].send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == ExitCode.PREEMPTED, stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--algorithm.max-zero-advantage-steps", "1"],
            ExitCode.NO_SIGNAL,
            "No group of 1 steps in a row",
        ),
        (["--rollout.kv-cache-gib", "1e-6"], ExitCode.BAD_CONFIG, "rollout.kv_cache_gib = 1e-06"),
    ],
)
def test_an_error_of_either_side_is_the_runs(
    cache: Path, tmp_path: Path, options: list[str], code: ExitCode, message: str
) -> None:
    done = train(tmp_path, cache, "--steps", "4", *ONE_AND_ONE, *options)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert read_exit_code(tmp_path) == code
