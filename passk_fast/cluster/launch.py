"""`passk-fast launch`: torchrun on one host of several, with an exit code that has a meaning.

The same command runs on every host (launch/torchrun.sh, launch/slurm.sbatch). What it adds: the
workers' exit code is this process's, SIGTERM reaches the workers and is waited for, each host has
its own log folder, and the address of this host is the one that reaches the rendezvous.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil

from passk_fast.argument_parser import Parser
from passk_fast.cluster import torchrun
from passk_fast.errors import ConfigError, LostRankError, PasskError
from passk_fast.process import die_with_parent

MODULES = {
    "train": "passk_fast.commands.train",
    "bench": "passk_fast.commands.bench",
    "preflight": "passk_fast.cluster.check",
}
_BACKEND = "passk-fast-named"
"""The rendezvous of `named_rendezvous`, to torchrun."""
_MOST = 100_000
_POLL_S = 0.2
_GRACE_S = 45.0
"""From a worker's failure to this process's end; torchrun gives the others 30 s to leave."""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options before the command word, and what comes after it for the workers.

    Raises:
        ConfigError: no command word, an unknown one, or a rendezvous that is not HOST:PORT.
    """
    parser = Parser(
        prog="passk-fast launch",
        description=(__doc__ or "").splitlines()[0],
        usage="passk-fast launch --nodes N --nproc N --rendezvous HOST:PORT [options] "
        "{" + ",".join(MODULES) + "} ...",
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, required=True, help="hosts in all")
    parser.add_argument("--nproc", type=int, required=True, help="ranks on each host: its GPUs")
    parser.add_argument(
        "--rendezvous", required=True, help="HOST:PORT on one of the hosts, the same on all"
    )
    parser.add_argument("--run-id", default="passk", help="tells two runs on one port apart")
    parser.add_argument("--log-dir", default="runs/logs", help="each host has a folder in it")
    parser.add_argument(
        "--join-timeout-s", type=int, default=600, help="how long to wait for the other hosts"
    )
    parser.add_argument("command", choices=MODULES)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    host, colon, port = options.rendezvous.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 1 << 16
    if not (host and colon and is_port):
        raise ConfigError(
            "--rendezvous must be HOST:PORT with a port of at most 65535, got "
            f"{options.rendezvous!r}."
        )
    for name in ("nodes", "nproc"):
        if not 1 <= getattr(options, name) <= _MOST:
            raise ConfigError(f"--{name} must be from 1 to {_MOST}, got {getattr(options, name)}.")
    return options, options.rest


def own_address(rendezvous: str) -> tuple[str, bool]:
    """The address from which this host reaches the rendezvous, and whether the latter is its own.

    torchrun would look this host's own name up, which on many clusters answers with loopback or
    not at all. ConfigError if there is no way.
    """
    host, _, port = rendezvous.rpartition(":")
    try:
        kind, _, _, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it only asks for the route
            address = str(probe.getsockname()[0])
            return address, address in (target[0], "127.0.0.1", "::1")
    except OSError as error:
        raise ConfigError(
            f"--rendezvous {rendezvous}: this host has no way to {host}: {error.strerror}."
        ) from None


def interface_of(address: str) -> str | None:
    """The network interface that has an address, or None."""
    name: str
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def environment(address: str, nproc: int) -> dict[str, str]:
    """What the workers need; a variable that is set already is left as it is (docs/cluster.md)."""
    cores = len(os.sched_getaffinity(0))
    wanted = {
        "OMP_NUM_THREADS": str(max(1, cores // nproc)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": address,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_ERROR_FILE": os.devnull,
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        "LOGLEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    interface = interface_of(address)
    if interface is not None:
        # Gloo would take the interface that the host's own name resolves to: often loopback.
        wanted["GLOO_SOCKET_IFNAME"] = interface
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _forward(number: int, frame: object) -> None:
    """Hand a signal to the workers, and wait on: they save, and leave with a code."""
    for child in psutil.Process().children():
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _end_when_torchrun_hangs() -> None:
    """End this process when a worker has failed and torchrun has not returned for _GRACE_S.

    torchrun asks the rendezvous host's store how things are and waits for the answer without end:
    a host that was unplugged or lost its power does not even refuse.
    """
    codes: list[int] = []
    failed_at = float("inf")
    while time.monotonic() < failed_at + _GRACE_S:
        time.sleep(_POLL_S)
        try:  # looks, and leaves the child for torchrun to collect
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            continue
        if ended is not None and ended.si_status != 0:
            was_killed = ended.si_code != os.CLD_EXITED
            codes.append(-ended.si_status if was_killed else ended.si_status)
            failed_at = min(failed_at, time.monotonic())
    for child in psutil.Process().children():
        child.kill()
    print("error: The rendezvous host does not answer; it is lost.", file=sys.stderr, flush=True)
    os._exit(torchrun.exit_code(codes))


def torchrun_arguments(options: argparse.Namespace, address: str, is_host: bool) -> list[str]:
    """torchrun's own options."""
    wait = options.join_timeout_s
    log_dir = Path(options.log_dir) / f"{socket.gethostname()}-{address}"
    return [
        f"--nnodes={options.nodes}",
        f"--nproc-per-node={options.nproc}",
        f"--rdzv-backend={_BACKEND}",
        f"--rdzv-endpoint={options.rendezvous}",
        f"--rdzv-id={options.run_id}",
        # read_timeout is how long a host that comes first waits for the rendezvous host itself.
        f"--rdzv-conf=is_host={is_host},join_timeout={wait},timeout={wait},read_timeout={wait}",
        f"--local-addr={address}",
        "--max-restarts=0",  # a lost host ends the run; started anew, it resumes
        "--monitor-interval=0.5",
        f"--log-dir={log_dir}",
        "--tee=3",
        "--local-ranks-filter=0",
        # SIGTERM and SIGINT are this module's: torchrun would kill the workers after 30 s.
        "--signals-to-handle=SIGHUP,SIGQUIT",
    ]


def launch(arguments: list[str]) -> int:
    """Run this host's workers to their end and return their exit code.

    Raises:
        ConfigError: the options cannot be right.
        LostRankError: the hosts did not find each other.
    """
    options, rest = parse(arguments)
    address, is_host = own_address(options.rendezvous)
    if options.nodes > 1 and address in ("127.0.0.1", "::1"):
        raise ConfigError(
            f"--rendezvous {options.rendezvous} is loopback on this host, where no other host "
            "finds it: give the address of a network interface."
        )
    os.environ.update(environment(address, options.nproc))
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    from passk_fast.cluster import named_rendezvous

    named_rendezvous.register(_BACKEND)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _forward)
    threading.Thread(target=_end_when_torchrun_hangs, daemon=True).start()
    command = [
        *torchrun_arguments(options, address, is_host),
        "-m",
        MODULES[options.command],
        *rest,
    ]
    try:
        return torchrun.run(command)
    except RendezvousError as error:
        raise LostRankError(
            f"The {options.nodes} hosts did not meet at {options.rendezvous}, or the host there "
            f"was lost ({error}). If no rank has started: is the command running on all of them, "
            "does the address belong to one of them, and is the port open?"
        ) from None


if __name__ == "__main__":
    die_with_parent()
    try:
        sys.exit(launch(sys.argv[1:]))
    except PasskError as failed:
        print(f"error: {failed}", file=sys.stderr, flush=True)
        sys.exit(int(failed.exit_code))
