"""`passk-fast launch`: options, addresses and exit codes; with two hosts: test_hosts.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from passk_fast.cluster.launch import environment, interface_of, own_address, parse
from passk_fast.cluster.torchrun import exit_code
from passk_fast.errors import ConfigError, ExitCode
from tests.run.test_end_to_end import call

HERE = "--nodes 1 --nproc 2 --rendezvous 127.0.0.1:0".split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2", "--nproc", "1", "--rendezvous", "host", "train"], "must be HOST:PORT"),
        (["--nodes", "2", "--nproc", "1", "--rendezvous", "host:x", "train"], "must be HOST:PORT"),
        (
            ["--nodes", "0", "--nproc", "1", "--rendezvous", "h:1", "train"],
            "--nodes must be from 1",
        ),
        (
            ["--nodes", "1", "--nproc", "0", "--rendezvous", "h:1", "train"],
            "--nproc must be from 1",
        ),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(arguments)


def test_what_follows_the_command_is_the_workers() -> None:
    options, rest = parse([*HERE, "train", "a.toml", "--nodes", "7", "--optim.lr", "1"])
    assert (options.nodes, options.command) == (1, "train")
    assert rest == ["a.toml", "--nodes", "7", "--optim.lr", "1"]


def test_addresses() -> None:
    assert own_address("127.0.0.1:29500") == ("127.0.0.1", True)
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") is None
    with pytest.raises(ConfigError, match=r"no way to no-such-host\.invalid"):
        own_address("no-such-host.invalid:1")


def test_loopback_is_no_rendezvous_for_two_hosts() -> None:
    done = call(*"launch --nodes 2 --nproc 1 --rendezvous 127.0.0.1:29500 preflight".split())
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "loopback" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert environment("127.0.0.1", 1)["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in environment("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("codes", "wanted"), [([-9, 17], 17), ([-15, 16, 17], 16), ([-9, -9], 17), ([], 17)]
)
def test_one_code_of_many(codes: list[int], wanted: int) -> None:
    assert exit_code(codes) == wanted


SLEEPER = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)  # saving
    os._exit(16)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(120)
"""


@pytest.mark.slow
def test_sigterm_reaches_the_workers_and_their_code_comes_back(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    start = (
        "import sys, passk_fast.cluster.launch as l; l.MODULES['train'] = 'sleeper';"
        "sys.exit(l.launch(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", start, *HERE, "--log-dir", str(tmp_path / "logs"), "train"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    logs = tmp_path / "logs"
    while time.monotonic() < deadline:
        ready = [log for log in logs.rglob("stdout.log") if "ready" in log.read_text()]
        if len(ready) == 2:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == ExitCode.PREEMPTED


def test_the_scripts_say_what_is_missing(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    environment = os.environ | {"NODES": "2", "PYTHON": sys.executable}
    environment.pop("RENDEZVOUS", None)
    done = subprocess.run(
        [str(script), "train", "x.toml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_CONFIG
    assert re.fullmatch(r"launch: set RENDEZVOUS=HOST:PORT.*\n", done.stderr)
    for name in ("torchrun.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(script.with_name(name))], check=True)


SRUN = """#!/bin/bash
echo "srun $* NODES=$NODES NPROC=${NPROC-unset} RENDEZVOUS=$RENDEZVOUS"
case "$*" in *preflight*) exit "$PREFLIGHT_CODE";; *) exit "$CODE";; esac
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "scontrol $*"; fi
"""


@pytest.mark.parametrize(
    ("changes", "code", "commands"),
    [
        ({}, 0, ["preflight", "train"]),
        ({"CODE": "16"}, 16, ["preflight", "train", "requeue"]),
        ({"CODE": "17"}, 17, ["preflight", "train", "requeue"]),
        ({"CODE": "17", "SLURM_RESTART_COUNT": "20"}, 17, ["preflight", "train"]),
        ({"CODE": "30"}, 30, ["preflight", "train"]),
        ({"PREFLIGHT_CODE": "2"}, 2, ["preflight"]),
        ({"PREFLIGHT": "0"}, 0, ["train"]),
    ],
)
def test_what_the_slurm_script_calls(
    tmp_path: Path, changes: dict[str, str], code: int, commands: list[str]
) -> None:
    done = slurm(tmp_path, changes, "train", "x.toml")
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands)
    for line, command in zip(lines, commands, strict=True):
        if command == "requeue":
            assert line == "scontrol requeue 123456"
        else:
            assert f"launch/torchrun.sh {command} " in line
            assert line.endswith("NODES=2 NPROC=8 RENDEZVOUS=node1:23456")
    assert ("requeued" in done.stderr) == ("requeue" in commands)


@pytest.mark.parametrize("given", [["--resume", "20"], ["--resume=20"], ["--fresh"]])
def test_a_requeued_job_is_not_told_again_where_to_begin(tmp_path: Path, given: list[str]) -> None:
    words = ["train", "x.toml", *given, "--output-dir", "a b"]
    for count, kept in (("0", " ".join(words)), ("1", "train x.toml --output-dir a b")):
        job = {"PREFLIGHT": "0", "SLURM_RESTART_COUNT": count}
        assert f"launch/torchrun.sh {kept} " in slurm(tmp_path, job, *words).stdout


def slurm(
    folder: Path, changes: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the script of a job, with stand-ins for srun and scontrol."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    root = Path(__file__).parents[2]
    job = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "8",
        "CODE": "0",
        "PREFLIGHT_CODE": "0",
    }
    return subprocess.run(
        ["bash", str(root / "launch" / "slurm.sbatch"), *arguments],
        env=job | changes,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_needs_no_other_host() -> None:
    assert "--rendezvous" in call("launch", "--help").stdout
    assert "--max-skew-s" in call("preflight", "--help").stdout
