"""Megatron's sharded state: resuming is exact, and another mesh reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from passk_fast.checkpoint.megatron import disk_errors_of_ranks
from tests.checkpoint.workers import CONTENTS
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

W = "tests.actor.workers"


@pytest.fixture(scope="module")
def saved(
    one_rank: RankPool, folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, torch.Tensor]]:
    """(checkpoint after two steps, weights after four uninterrupted ones)."""
    path = tmp_path_factory.mktemp("checkpoint")
    one_rank.run(f"{W}:train_steps", "qwen3", folders["qwen3"], {}, 2, save=str(path))
    return str(path), one_rank.run(f"{W}:train_steps", "qwen3", folders["qwen3"], {}, 4)[0]


def test_resuming_is_bit_exact(
    one_rank: RankPool, folders: dict[str, str], saved: tuple[str, dict[str, torch.Tensor]]
) -> None:
    got = one_rank.run(f"{W}:train_steps", "qwen3", folders["qwen3"], {}, 2, load=saved[0])[0]
    for name, tensor in saved[1].items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}, {}], ids=["tp2", "pp2", "dp2"])
def test_another_mesh_resumes(
    two_ranks: RankPool,
    folders: dict[str, str],
    saved: tuple[str, dict[str, torch.Tensor]],
    mesh: dict[str, Any],
) -> None:
    got = two_ranks.run(f"{W}:train_steps", "qwen3", folders["qwen3"], mesh, 2, load=saved[0])[0]
    for name, tensor in saved[1].items():
        # Adam divides by the root of tiny second moments: sums in another order show more there.
        assert (got[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def test_a_checkpoint_before_the_first_optimizer_step_is_resumed_exactly(
    one_rank: RankPool,
    folders: dict[str, str],
    saved: tuple[str, dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    run = (f"{W}:train_steps", "qwen3", folders["qwen3"], {})
    one_rank.run(*run, 0, save=str(tmp_path))
    got = one_rank.run(*run, 4, load=str(tmp_path))[0]
    for name, tensor in saved[1].items():
        assert torch.equal(got[name], tensor), name


def test_one_rank_reads_what_two_wrote(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    mesh = {"tensor": 2}
    run = f"{W}:train_steps"
    want = two_ranks.run(run, "qwen2", folders["qwen2"], mesh, 2, save=str(tmp_path))[0]
    got = one_rank.run(run, "qwen2", folders["qwen2"], {}, 0, load=str(tmp_path))[0]
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_loading_keeps_a_parameters_own_step() -> None:
    from passk_fast.checkpoint.megatron import completed

    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight])
    adam.state[weight]["step"] = torch.tensor(3.0)

    class Part:
        """What `completed` asks of Megatron's distributed optimizer."""

        optimizer = adam
        model_param_group_index_map = {weight: (0, 0)}  # noqa: RUF012
        loaded: dict[str, torch.Tensor]

        def _set_main_param_and_optimizer_states(
            self, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
        ) -> None:
            self.loaded = tensors

        load = property(lambda self: self._set_main_param_and_optimizer_states)

    part = Part()
    with completed(part):
        part.load(weight, {"param": torch.ones(1)})
    assert part.loaded["step"] == 3
    part.load(weight, {"param": torch.ones(1)})
    assert "step" not in part.loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_state_is_described_without_copies_and_once(
    one_rank: RankPool, folders: dict[str, str], dtype: str
) -> None:
    run = "tests.checkpoint.workers:stored_keys"
    ((keys, copied),) = one_rank.run(run, "qwen3", folders["qwen3"], dtype)
    assert keys == {"exp_avg", "exp_avg_sq"} | ({"param"} if dtype == "bfloat16" else set())
    assert not copied


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("old", [False, True], ids=["streamed", "older"])
def test_both_forms_resume_exactly(
    one_rank: RankPool, folders: dict[str, str], tmp_path: Path, dtype: str, old: bool
) -> None:
    run = "tests.checkpoint.workers:resumed_differs"
    assert one_rank.run(run, "llama", folders["llama"], dtype, str(tmp_path), old=old) == [False]


def test_two_data_parallel_ranks_resume_exactly(
    two_ranks: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    run = "tests.checkpoint.workers:resumed_differs"
    where = ("qwen3_moe", folders["qwen3_moe"], "bfloat16", str(tmp_path))
    assert two_ranks.run(run, *where, old=False) == [False, False]
    sizes = [sum(f.stat().st_size for f in tmp_path.glob(f"__{rank}_*")) for rank in (0, 1)]
    assert min(sizes) > 0.25 * max(sizes)  # each writes a share


def test_a_disk_that_fills_up_within_a_tensor_is_a_disk_error(
    one_rank: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    run = "tests.checkpoint.workers:open_file_error"
    (said,) = one_rank.run(run, "qwen3", folders["qwen3"], str(tmp_path))
    assert "cannot write: the file system is full (" in said


def test_a_full_disk_of_one_rank_is_a_disk_error(
    one_rank: RankPool, folders: dict[str, str], tmp_path: Path
) -> None:
    run = "tests.checkpoint.workers:error_on_a_full_disk"
    said = one_rank.run(run, "qwen3", folders["qwen3"], {}, str(tmp_path))[0]
    assert said.startswith(f"rank 0: {tmp_path}: cannot write: the file system is full (")
    assert "bytes, are free" in said


def test_another_failure_of_the_writer_is_no_disk_error(tmp_path: Path) -> None:
    failure = CheckpointException("write", {1: _wrap_exception(RuntimeError("[Errno 2] gone"))})
    with pytest.raises(CheckpointException), disk_errors_of_ranks(tmp_path):
        raise failure


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_files_of_another_content_are_damage_and_no_traceback(
    one_rank: RankPool, two_ranks: RankPool, folders: dict[str, str], tmp_path: Path, ranks: str
) -> None:
    pool, mesh = (one_rank, {}) if ranks == "one" else (two_ranks, {"tensor": 2})
    run = "tests.checkpoint.workers:refusals"
    for said in pool.run(run, "qwen3", folders["qwen3"], mesh, str(tmp_path)):
        for name, text in said.items():
            file, _ = CONTENTS[name]
            assert text.startswith(f"{tmp_path / name / file} is as it was sealed, but "), name
            assert "\n" not in text
        assert len(said) == len(CONTENTS)


def test_what_rank_0_finds_all_ranks_know(two_ranks: RankPool) -> None:
    run = "tests.checkpoint.workers:what_rank_0_does"
    assert two_ranks.run(run, False) == [("done by [0]", "")] * 2
    assert two_ranks.run(run, True) == [("", "bad.pt is missing.")] * 2
