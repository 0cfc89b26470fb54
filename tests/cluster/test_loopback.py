"""On one host nothing listens beyond loopback, and no peer's pickle is read."""

from __future__ import annotations

import base64
import pickle
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from passk_fast.cluster.loopback import LoopbackRendezvous
from passk_fast.process_group import LOOPBACK
from tests.cluster.listeners import listeners, other_address, watch_listeners
from tests.hostile_pickle import HostilePickle
from tests.run.test_end_to_end import COMMAND, CONFIG, SMALL

TORCHRUN = [sys.executable, "-m", "passk_fast.cluster.torchrun", "--nproc-per-node=2"]
PROGRAM = """
import time
import torch, torch.distributed as dist
from passk_fast.process_group import start_process_group
start_process_group("cpu", 60)
dist.all_reduce(torch.ones(1), group=dist.new_group([0, 1]))
print("joined", flush=True)
time.sleep({seconds})
dist.destroy_process_group()
"""


def test_every_round_is_a_store_of_its_own_on_loopback() -> None:
    rendezvous = LoopbackRendezvous("run")
    first, second = rendezvous.next_rendezvous(), rendezvous.next_rendezvous()
    first.store.set("key", b"old")
    assert not second.store.check(["key"]), "a restart must not meet what the last round wrote"
    assert (first.rank, first.world_size, rendezvous.num_nodes_waiting()) == (0, 1, 0)
    info = first.bootstrap_store_info
    assert info is not None
    assert info.master_addr == LOOPBACK
    assert info.master_port > 0
    assert not rendezvous.is_closed()
    assert rendezvous.shutdown()
    assert rendezvous.is_closed()


def test_the_probe_sees_torchs_own_rendezvous(tmp_path: Path) -> None:
    """What the other tests would find if torchrun's rendezvous came back."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(seconds=0))
    environment = "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"
    watched = watch_listeners([*TORCHRUN, *environment, str(program)], 120)
    assert watched.code == 0, watched.output
    assert watched.beyond


def test_two_ranks_listen_on_loopback_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "not-an-interface")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(seconds=0.5))
    watched = watch_listeners([*TORCHRUN, "--standalone", str(program)], 120)
    assert watched.code == 0, watched.output
    assert watched.output.count("joined") == 2
    assert len({process for process, _, _ in watched.loopback}) == 2, "the ranks; not torchrun"
    assert watched.beyond == frozenset()


@pytest.mark.parametrize("own", [True, False], ids=["ours", "torchrun's"])
def test_a_rendezvous_key_written_from_outside(tmp_path: Path, own: bool) -> None:
    """The hostile write, at every port that the processes listen on. torch's own rendezvous shows
    that it would be obeyed: not by luck does ours refuse it."""
    address = other_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    program, executed = tmp_path / "program.py", tmp_path / "executed"
    program.write_text("import time\nprint('joined', flush=True)\ntime.sleep(30)\n")
    if own:
        program.write_text(PROGRAM.format(seconds=30))
    options = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=known"]
    command = [*TORCHRUN, *(["--standalone"] if own else options), str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert "joined" in started.stdout.readline()
            ports = {port for _, _, port in listeners(started.pid)}
            assert ports
            taken = [port for port in ports if _write_key(address, port, HostilePickle(executed))]
            end = time.monotonic() + (0 if own else 25)
            while not executed.exists() and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            started.send_signal(signal.SIGTERM)
    assert bool(taken) is not own
    assert executed.exists() is not own


def _write_key(address: str, port: int, value: object) -> bool:
    """Write torchrun's rendezvous key; False where nothing answers."""
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        return False
    try:
        store = TCPStore(address, port, None, False, timedelta(seconds=5))
    except RuntimeError:
        return False
    store.set("torch.rendezvous.known", base64.b64encode(pickle.dumps(value)))
    return True


PHASES = [
    "--steps",
    "2",
    "--rollout.verify-processes",
    "1",
]
DEDICATED = "--rollout.dedicated-ranks 1 --rollout.max-off-policy-steps 1 --loss.tis-clip 2".split()


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.parametrize("layout", [[], DEDICATED, ["--rollout.tensor", "2"]])
def test_a_whole_run_listens_on_loopback_alone(tmp_path: Path, layout: list[str]) -> None:
    """Start, warm start, sampling, verifying, training, evaluation and checkpoint."""
    places = ["--output-dir", str(tmp_path / "run"), "--warm-start.cache-dir", str(tmp_path / "c")]
    command = [*COMMAND, "train", str(CONFIG), *places, *SMALL, *PHASES, "--nproc", "2", *layout]
    watched = watch_listeners([*command, "--device", "cpu"], 270)
    assert watched.code == 0, watched.output
    assert watched.looks > 100
    assert len({process for process, _, _ in watched.loopback}) >= 2
    assert watched.beyond == frozenset()
    assert (tmp_path / "run" / "checkpoints" / "LATEST").exists()
    assert '"eval"' in (tmp_path / "run" / "metrics.jsonl").read_text()
