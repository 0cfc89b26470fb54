"""A run whose weights have become infinite ends before it saves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.errors import ExitCode
from tests.run.test_end_to_end import metrics, train


@pytest.mark.slow
@pytest.mark.megatron
def test_infinite_weights_end_the_run_and_older_checkpoints_stay(tmp_path: Path) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    # beta2 = 0: where a gradient shrinks, momentum over it makes an update larger than lr.
    options = "--optim.beta2 0 --checkpoint.every 1 --eval.every 0 --optim.lr".split()
    done = train(folder, cache, "--steps", "1", *options, "1e-4")
    assert done.returncode == ExitCode.DONE, done.stdout + done.stderr

    # As if the run had always had this learning rate: gradients are finite, weights overflow.
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.0001", "lr = 1e38"))
    done = train(folder, cache, "--steps", "3", *options, "1e38")
    assert done.returncode == ExitCode.DIVERGED, done.stdout + done.stderr
    assert "After step 2 the weight " in done.stderr
    assert " on rank 0 holds NaN or inf, so no checkpoint is written." in done.stderr
    assert "Traceback" not in done.stderr
    store = CheckpointStore(folder / "checkpoints", keep=2)
    assert store.newest_good() == (1, store.path(1))
    assert store.steps() == [1]
    assert not list(store.root.glob(".staging-*"))
    assert [record["step"] for record in metrics(folder)] == [0, 1]
