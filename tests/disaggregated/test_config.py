"""What rollout.dedicated_ranks asks for, before any process starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from passk_fast.commands.check_run import check_run
from passk_fast.commands.main import main
from passk_fast.commands.ranks import num_processes
from passk_fast.config import ParallelConfig, PolicyLoss, RolloutConfig, RunConfig
from passk_fast.config.file import differing_fields
from passk_fast.errors import ConfigError, ExitCode


def make(tmp_path: Path, parallel: dict[str, int] | None = None, **rollout: Any) -> RunConfig:
    """A good configuration of the disaggregated layout."""
    return RunConfig(
        output_dir=str(tmp_path / "run"),
        device="cpu",
        loss=PolicyLoss(tis_clip=2.0),
        parallel=ParallelConfig(**(parallel or {})),
        rollout=RolloutConfig(**({"dedicated_ranks": 2, "max_off_policy_steps": 1} | rollout)),
    )


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (
            {"max_off_policy_steps": 0},
            r"each side would idle.*Set rollout\.max_off_policy_steps = 1, or "
            r"rollout\.dedicated_ranks = 0",
        ),
        (
            {"dedicated_ranks": 3, "tensor": 2},
            r"rollout\.dedicated_ranks \(3\) must be a multiple of rollout\.tensor",
        ),
        ({"dedicated_ranks": -1}, r"rollout\.dedicated_ranks must be 0 or more, got -1"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **rollout)


def test_off_policy_steps_need_their_correction_and_an_awake_engine(tmp_path: Path) -> None:
    config = make(tmp_path)
    with pytest.raises(ConfigError, match=r"loss\.tis_clip"):
        replace(config, loss=PolicyLoss())
    with pytest.raises(ConfigError, match=r"rollout\.sleep = false"):
        replace(config, device="cuda")


@pytest.mark.parametrize(
    ("parallel", "world", "message"),
    [
        ({}, 2, r"rollout\.dedicated_ranks = 2 of 2 ranks leaves none to train"),
        ({"tensor": 2}, 3, r"of 3 ranks leaves 1 to train\. World size 1 is not divisible"),
    ],
)
def test_worlds_that_do_not_divide(
    tmp_path: Path, parallel: dict[str, int], world: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(make(tmp_path, parallel), world)


def test_the_trainers_mesh_covers_the_other_ranks(tmp_path: Path) -> None:
    check_run(make(tmp_path, {"tensor": 2}), 4)
    check_run(make(tmp_path, tensor=2), 3)  # one trainer rank, one engine of two


@pytest.mark.parametrize(
    ("cores", "parallel", "want"), [(2, {}, 3), (4, {}, 4), (4, {"tensor": 2}, 4), (64, {}, 4)]
)
def test_processes_are_those_of_both_sides(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    parallel: dict[str, int],
    want: int,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert num_processes(make(tmp_path, parallel), None) == want


def test_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passk_fast.commands.ranks.num_gpus", lambda: 8)
    config = make(tmp_path, {"tensor": 4}, dedicated_ranks=3, sleep=False)
    assert num_processes(replace(config, device="auto"), None) == 7  # 4 train, 3 sample, 1 idles


def test_a_run_may_go_on_in_the_other_layout(tmp_path: Path) -> None:
    assert differing_fields(make(tmp_path), make(tmp_path, dedicated_ranks=0)) == []


def test_bench_knows_one_layout_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    options = """
        --rollout.dedicated-ranks 4 --rollout.tensor 4 --rollout.max-off-policy-steps 1
        --rollout.no-sleep --loss.tis-clip 2
    """.split()
    with pytest.raises(SystemExit) as caught:
        main(["bench", "configs/maze_cpu.toml", *options])
    assert caught.value.code == ExitCode.BAD_CONFIG
    assert "set rollout.dedicated_ranks = 0" in capsys.readouterr().err
