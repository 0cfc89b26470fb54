"""Two hosts on one machine, for tests: Linux network namespaces joined by a veth pair.

Each has its own interfaces, loopback and host name; processes and files are the machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def why_not() -> str | None:
    """Why this machine cannot have such hosts, in words; None where it can."""
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"no `{tool}` here (packages iproute2 and util-linux)"
    name = f"passk{os.getpid()}try"
    made = _ip("netns", "add", name)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    link = _ip("-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    _ip("netns", "delete", name)
    return f"veth pairs cannot be made here: {link.stderr.strip()}" if link.returncode else None


class TwoHosts:
    """host-a (10.77.0.1) and host-b (10.77.0.2), which see each other and nothing else.

    Example: `with TwoHosts(folder) as hosts: hosts.launch(["preflight"])`.
    """

    addresses = ("10.77.0.1", "10.77.0.2")
    names = ("host-a", "host-b")

    def __init__(self, folder: Path) -> None:
        """`folder`: where each host's output goes, as host-a.out, host-a.err, ..."""
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._spaces = tuple(f"passk{os.getpid()}{side}" for side in "ab")

    def __enter__(self) -> TwoHosts:
        a, b = self._spaces
        for space in self._spaces:
            self._must("netns", "add", space)
        self._must("-n", a, "link", "add", "veth0", "type", "veth", "peer", "veth0", "netns", b)
        for space, address in zip(self._spaces, self.addresses, strict=True):
            self._must("-n", space, "addr", "add", f"{address}/24", "dev", "veth0")
            self._must("-n", space, "link", "set", "veth0", "up")
            self._must("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *exc: object) -> None:
        for host in range(2):
            self.kill(host)
        for child in self._children:
            child.kill()
            child.wait()
        for space in self._spaces:
            _ip("netns", "delete", space)

    @staticmethod
    def _must(*arguments: str) -> None:
        done = _ip(*arguments)
        if done.returncode != 0:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def start(
        self,
        host: int,
        command: Sequence[str],
        *,
        port: int = 29500,
        first: str = "",
        program: Sequence[str] = ("-m", "passk_fast"),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """`passk-fast launch ... command` with 2 ranks; `first` is shell that runs before it.

        `program`: what Python runs in place of passk-fast.
        """
        own = ["launch", "--nodes", "2", "--nproc", "2", "--rendezvous"]
        own += [f"{self.addresses[0]}:{port}", "--log-dir", str(self._folder / "logs")]
        shell = f'hostname {self.names[host]}; {first or ":"}; exec "$@"'
        wrap = ["ip", "netns", "exec", self._spaces[host], "unshare", "--uts", "--mount"]
        wrap += ["sh", "-c", shell, "sh", sys.executable, *program]
        with (
            (self._folder / f"{self.names[host]}.out").open("wb") as out,
            (self._folder / f"{self.names[host]}.err").open("wb") as err,
        ):
            child = subprocess.Popen(
                [*wrap, *own, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            )
        self._children.append(child)
        return child

    def output(self, host: int) -> tuple[str, str]:
        """What a host's launcher has printed so far: (stdout, stderr)."""
        both = (self._folder / f"{self.names[host]}.{kind}" for kind in ("out", "err"))
        out, err = (path.read_text(errors="replace") for path in both)
        return out, err

    def run(self, command: Sequence[str], *, timeout_s: float = 200.0) -> tuple[int, int]:
        """Start it on both hosts and wait: their exit codes."""
        return self.wait([self.start(host, command) for host in range(2)], timeout_s)

    @staticmethod
    def wait(children: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> tuple[int, int]:
        """Exit codes; subprocess.TimeoutExpired after `timeout_s` for both together."""
        deadline = time.monotonic() + timeout_s
        a, b = (child.wait(max(0.1, deadline - time.monotonic())) for child in children)
        return a, b

    def kill(self, host: int) -> None:
        """SIGKILL for every process of a host, as if its power went and its kernel said goodbye."""
        for pid in _ip("netns", "pids", self._spaces[host]).stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def unplug(self, host: int) -> None:
        """Take its cable out: nothing is refused, nothing arrives."""
        self._must("-n", self._spaces[host], "link", "set", "veth0", "down")
