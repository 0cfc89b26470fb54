"""How many ranks a command starts, what it passes on to them, and the code they leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from passk_fast.cluster.exit_code_file import read_exit_code, write_exit_code
from passk_fast.commands import ranks
from passk_fast.commands.arguments import positive, take
from passk_fast.commands.ranks import (
    code_of_ranks,
    leave_exit_code,
    num_gpus,
    num_processes,
    start_ranks,
)
from passk_fast.config import ModelConfig, ParallelConfig, PolicyLoss, RolloutConfig, RunConfig
from passk_fast.errors import ConfigError, ExitCode, LostRankError


def run(dedicated: int = 0, engine: int = 1, device: str = "auto", **parallel: int) -> RunConfig:
    settings: dict[str, Any] = {}
    if dedicated:
        settings = {"dedicated_ranks": dedicated, "max_off_policy_steps": 1, "sleep": False}
    return RunConfig(
        device=device,  # type: ignore[arg-type]
        model=ModelConfig(path="x"),
        parallel=ParallelConfig(**parallel),
        rollout=RolloutConfig(tensor=engine, **settings),
        loss=PolicyLoss(tis_clip=2.0),
    )


@pytest.mark.parametrize(
    ("arguments", "value", "rest"),
    [
        (["--out", "f", "x"], "f", ["x"]),
        (["x", "--out=f"], "f", ["x"]),
        (["--out=", "x"], "", ["x"]),
        (["x", "--output", "f"], None, ["x", "--output", "f"]),
        ([], None, []),
    ],
)
def test_an_option_is_taken_out(arguments: list[str], value: str | None, rest: list[str]) -> None:
    assert take(arguments, "--out") == value
    assert arguments == rest


def test_an_option_without_its_value() -> None:
    with pytest.raises(ConfigError, match="--out needs a value"):
        take(["x", "--out"], "--out")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_count_is_a_positive_number(text: str) -> None:
    assert positive("12", "--nproc") == 12
    with pytest.raises(ConfigError, match="--nproc must be a positive number"):
        positive(text, "--nproc")


@pytest.mark.parametrize(
    ("cores", "config", "wanted"),
    [
        (1, run(), 1),
        (2, run(), 2),
        (64, run(), 4),
        (2, run(tensor=4), 4),
        (4, run(tensor=2, engine=1), 4),
        (4, run(tensor=3), 3),
        (2, run(engine=2), 2),
        (4, run(dedicated=1), 4),
        (2, run(dedicated=2, engine=2), 3),
    ],
)
def test_ranks_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, cores: int, config: RunConfig, wanted: int
) -> None:
    monkeypatch.setattr(ranks, "num_gpus", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert num_processes(config, None) == wanted


@pytest.mark.parametrize(
    ("gpus", "config", "wanted"),
    [
        (8, run(), 8),
        (8, run(tensor=4), 8),
        (7, run(tensor=4), 4),
        (2, run(tensor=4), 4),
        (8, run(dedicated=2, tensor=2), 8),
        (8, run(dedicated=3, tensor=2), 7),
    ],
)
def test_ranks_on_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, config: RunConfig, wanted: int
) -> None:
    monkeypatch.setattr(ranks, "num_gpus", lambda: gpus)
    assert num_processes(config, None) == wanted


def test_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "num_gpus", lambda: 8)
    assert num_processes(run(), "3") == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert num_processes(run(device="cpu"), None) == 2


@pytest.mark.parametrize(
    ("prints", "code", "wanted"),
    [("GPU 0: NVIDIA H100\nGPU 1: NVIDIA H100\n", 0, 2), ("", 0, 0), ("GPU 0: failed\n", 9, 0)],
)
def test_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, code: int, wanted: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{prints}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert num_gpus() == wanted


def test_no_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert num_gpus() == 0


PROGRAM = """
import os, sys
from pathlib import Path
names = ("OMP_NUM_THREADS", "WORLD_SIZE", "PYTHONWARNINGS")
text = " ".join([*sys.argv[2:], *(os.environ[name] for name in names)])
(Path(sys.argv[1]) / os.environ["RANK"]).write_text(text)
if int(sys.argv[2]) and os.environ["RANK"] == "0":
    print("the program's own words", file=sys.stderr)
sys.exit(int(sys.argv[2]) if os.environ["RANK"] == "0" else 0)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_ranks_get_the_arguments_and_a_failure_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int,
) -> None:
    name = f"rank_program_{code}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    returned = start_ranks(2, name, [str(out), str(code), "--key", "value"])
    assert returned == code
    printed = "".join(capfd.readouterr())
    assert printed.strip() == "the program's own words" * (code != 0), "and nothing of torchrun's"
    wrote = {file.name: file.read_text() for file in out.iterdir()}
    assert set(wrote.values()) == {f"{code} --key value 7 2 ignore"}
    if code == 0:
        assert set(wrote) == {"0", "1"}


@pytest.mark.parametrize(
    ("rank", "code", "written"),
    [
        (0, ExitCode.DONE, True),
        (0, ExitCode.PREEMPTED, True),
        (1, ExitCode.DONE, False),
        (1, ExitCode.PREEMPTED, False),
        (1, ExitCode.DISK, True),
    ],
)
def test_who_leaves_a_code(tmp_path: Path, rank: int, code: ExitCode, written: bool) -> None:
    leave_exit_code(tmp_path, rank, code)
    assert read_exit_code(tmp_path) == (code if written else None)


@pytest.mark.parametrize(
    ("left", "returned", "wanted"),
    [
        (ExitCode.DONE, 0, ExitCode.DONE),
        (None, 0, ExitCode.DONE),
        (ExitCode.PREEMPTED, 1, ExitCode.PREEMPTED),
        (ExitCode.DIVERGED, 1, ExitCode.DIVERGED),
    ],
)
def test_the_code_of_all_ranks(
    tmp_path: Path, left: ExitCode | None, returned: int, wanted: ExitCode
) -> None:
    if left is not None:
        write_exit_code(tmp_path, left)
    assert code_of_ranks(returned, tmp_path, "lost") is wanted


@pytest.mark.parametrize("left", [None, ExitCode.DONE])
def test_ranks_that_fail_without_a_word_are_lost(tmp_path: Path, left: ExitCode | None) -> None:
    if left is not None:
        write_exit_code(tmp_path, left)
    with pytest.raises(LostRankError, match="no rank said why"):
        code_of_ranks(1, tmp_path, "no rank said why")
