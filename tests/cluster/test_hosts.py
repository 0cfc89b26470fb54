"""Several hosts for real: preflight and training over two network namespaces."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passk_fast.errors import ExitCode
from tests.cluster.hosts import ROOT, TwoHosts, why_not
from tests.run.test_end_to_end import CONFIG, SMALL, metrics, train

DISAGGREGATED = """
    --rollout.dedicated-ranks 2 --rollout.max-off-policy-steps 1 --loss.tis-clip 2 --device cpu
""".split()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with TwoHosts(tmp_path) as both:
        yield both


def said(hosts: TwoHosts) -> str:
    """Everything both launchers printed, without torchrun's mark of the rank."""
    text = "\n".join(part for host in range(2) for part in hosts.output(host))
    return re.sub(r"^\[rank \d+\] ", "", text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.sample
def test_preflight_finds_two_good_hosts(hosts: TwoHosts, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    command = ["preflight", "--storage", str(shared), "--storage-mib", "8", "--send-mib", "8"]
    assert hosts.run([*command, "--min-memory-gib", "0.1"]) == (0, 0), said(hosts)
    table = said(hosts)  # the host of rank 0 prints it
    for name in hosts.names:
        row = next(line for line in table.splitlines() if line.startswith(name))
        assert re.search(r" (0-1|2-3) .*GiB .* ms +\d+\.\d\d GB/s +\d+ MB/s +shared$", row), row
    assert "4 ranks on 2 hosts: nothing wrong." in table
    assert list(shared.iterdir()) == []
    logs = {path.name.rpartition("-")[0] for path in (tmp_path / "logs").iterdir()}
    assert logs == set(hosts.names)


@pytest.mark.slow
def test_preflight_says_what_is_wrong(hosts: TwoHosts, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    command = ["preflight", "--storage", str(shared), "--storage-mib", "8", "--send-mib", "8"]
    children = [
        hosts.start(0, command),
        hosts.start(
            1,
            command,
            first=f"mount -t tmpfs none {shared}; ulimit -n 512",
            environment={"NCCL_ALGO": "Ring"},
        ),
    ]
    assert hosts.wait(children, 200) == (ExitCode.BAD_CONFIG, ExitCode.BAD_CONFIG), said(hosts)
    lines = [line for line in said(hosts).splitlines() if "wrong: " in line]
    text = "\n".join(lines)
    assert "NCCL_ALGO differs: Ring on host-b; unset on host-a." in text
    assert "Storage is not shared" in text
    assert "host-b allows 512 open files" in text
    assert len(lines) == 3, text


@pytest.mark.slow
@pytest.mark.parametrize("alone", [0, 1])
def test_a_host_that_waits_alone_says_so(hosts: TwoHosts, alone: int) -> None:
    child = hosts.start(alone, ["--join-timeout-s", "5", "preflight"])
    assert child.wait(120) == ExitCode.LOST_RANK
    _, errors = hosts.output(alone)
    assert "error: The 2 hosts did not meet at 10.77.0.1:29500" in errors
    assert "Traceback" not in errors


def run_arguments(tmp_path: Path, name: str) -> list[str]:
    """The arguments of a small run."""
    where = ["--output-dir", str(tmp_path / name), "--warm-start.cache-dir", str(tmp_path / "c")]
    return ["train", str(CONFIG), *where, *SMALL]


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(900)
def test_two_hosts_train_as_one_does(hosts: TwoHosts, tmp_path: Path) -> None:
    one = train(tmp_path / "one", tmp_path / "c", "--steps", "2", "--nproc", "4")
    assert one.returncode == 0, one.stdout + one.stderr
    codes = hosts.run([*run_arguments(tmp_path, "two"), "--steps", "2"], timeout_s=400)
    assert codes == (0, 0), said(hosts)
    assert [record["step"] for record in metrics(tmp_path / "two")] == [0, 1, 2]
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(900)
def test_one_host_trains_what_the_other_samples(hosts: TwoHosts, tmp_path: Path) -> None:
    one = train(tmp_path / "one", tmp_path / "c", "--steps", "2", "--nproc", "4", *DISAGGREGATED)
    assert one.returncode == 0, one.stdout + one.stderr
    codes = hosts.run(
        [*run_arguments(tmp_path, "two"), "--steps", "2", *DISAGGREGATED], timeout_s=400
    )
    assert codes == (0, 0), said(hosts)
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")


LOOP = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from passk_fast.process import report_error
try:
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))
    for i in range(10**6):
        dist.all_reduce(torch.ones(1))
        time.sleep(0.05)
        if i == 5:
            Path(sys.argv[1], f"ready{dist.get_rank()}").touch()
except BaseException as error:
    os._exit(int(report_error(error, dist.get_rank())))
"""
LAUNCH_LOOP = """
import sys, passk_fast.cluster.launch
passk_fast.cluster.launch.MODULES["train"] = "endless_loop"
from passk_fast.errors import PasskError
try:
    sys.exit(passk_fast.cluster.launch.launch(sys.argv[2:]))
except PasskError as failed:
    sys.exit(int(failed.exit_code))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lose", [TwoHosts.kill, TwoHosts.unplug])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_the_other(
    hosts: TwoHosts, tmp_path: Path, lose: Callable[[TwoHosts, int], None], lost: int
) -> None:
    """Ranks that only reduce, with a deadline of 10 s; host-a (0) holds the rendezvous."""
    (tmp_path / "endless_loop.py").write_text(LOOP)
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")]))
    children = [
        hosts.start(
            host,
            ["train", str(tmp_path)],
            program=["-c", LAUNCH_LOOP],
            environment={"PYTHONPATH": path},
        )
        for host in range(2)
    ]
    wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 4, children, hosts)
    lose(hosts, lost)
    start = time.monotonic()
    assert children[1 - lost].wait(150) == ExitCode.LOST_RANK, said(hosts)
    # killed: closed connections say so; unplugged: the collective's deadline and torchrun's end
    assert time.monotonic() - start < (40 if lose is TwoHosts.kill else 110)


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lose", [TwoHosts.kill, TwoHosts.unplug])
def test_training_ends_when_a_host_is_lost(
    hosts: TwoHosts, tmp_path: Path, lose: Callable[[TwoHosts, int], None]
) -> None:
    timeout_s = 60  # of a collective
    command = [*run_arguments(tmp_path, "run"), "--steps", "5000", "--timeout-s", str(timeout_s)]
    children = [hosts.start(host, command) for host in range(2)]
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) > 2, children, hosts)
    lose(hosts, 0)
    start = time.monotonic()
    assert children[1].wait(timeout_s + 100) == ExitCode.LOST_RANK, said(hosts)
    assert time.monotonic() - start < timeout_s + 60
    assert (tmp_path / "run" / "exit_code").read_text().strip() == "17"


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(900)
def test_rollout_ranks_end_when_the_trainers_host_is_unplugged(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    """Whether they wait for an order, give an answer or take weights: long before ten time-outs."""
    timeout_s = 30
    options = ["--steps", "5000", "--timeout-s", str(timeout_s), *DISAGGREGATED]
    children = [hosts.start(host, [*run_arguments(tmp_path, "run"), *options]) for host in range(2)]
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) > 2, children, hosts)
    hosts.unplug(0)
    start = time.monotonic()
    assert children[1].wait(timeout_s + 150) == ExitCode.LOST_RANK, said(hosts)
    assert time.monotonic() - start < timeout_s + 100


def wait_until(
    reached: Callable[[], bool],
    children: list[subprocess.Popen[bytes]],
    hosts: TwoHosts,
    timeout_s: float = 400,
) -> None:
    """Until `reached`; fails when a host ends before, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert all(child.poll() is None for child in children), said(hosts)
        assert time.monotonic() < deadline, said(hosts)
        time.sleep(0.3)
