"""What of a checkpoint can execute code: nothing before its digest has matched."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from passk_fast.checkpoint.manifest import CorruptCheckpointError, verify_checkpoint
from tests.hostile_pickle import HostilePickle


def test_the_common_file_is_read_without_its_pickles_code(tmp_path: Path) -> None:
    from megatron.core import dist_checkpointing

    executed = tmp_path / "executed"
    backends = {"sharded_backend": "torch_dist", "common_backend": "torch"}
    versions = {"sharded_backend_version": 1, "common_backend_version": 1}
    (tmp_path / "metadata.json").write_text(json.dumps(backends | versions))
    torch.save({"optimizer": HostilePickle(executed)}, tmp_path / "common.pt")
    with pytest.raises(Exception, match=r"Weights only load failed|weights_only"):
        dist_checkpointing.load_common_state_dict(str(tmp_path))
    assert not executed.exists()
    torch.load(tmp_path / "common.pt", weights_only=False)
    assert executed.exists(), "the file would have been executed"


def test_an_index_of_another_digest_is_not_read(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    folder = tmp_path / "step_1"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(HostilePickle(executed)))
    with pytest.raises(CorruptCheckpointError):
        verify_checkpoint(folder)
    assert not executed.exists()
