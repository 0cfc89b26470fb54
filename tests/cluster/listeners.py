"""Who listens: the sockets of a command's processes, looked at again and again while it runs."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass

import psutil

_PAUSE_S = 0.03


@dataclass(frozen=True)
class Watched:
    """What a command did, and the addresses that its processes listened on meanwhile."""

    code: int
    output: str
    looks: int
    loopback: frozenset[tuple[int, str, int]]
    """(process, address, port)."""
    beyond: frozenset[tuple[int, str, int]]


def watch_listeners(command: list[str], timeout_s: float) -> Watched:
    """Run a command to its end; TimeoutError after `timeout_s`."""
    found: set[tuple[int, str, int]] = set()
    looks, deadline = 0, time.monotonic() + timeout_s
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while started.poll() is None:
            if time.monotonic() > deadline:
                started.terminate()
                started.wait()
                raise TimeoutError(" ".join(command))
            found |= listeners(started.pid)
            looks += 1
            time.sleep(_PAUSE_S)
        output.seek(0)
        text = output.read()
    beyond = {entry for entry in found if not ipaddress.ip_address(entry[1]).is_loopback}
    return Watched(started.returncode, text, looks, frozenset(found - beyond), frozenset(beyond))


def listeners(root: int) -> set[tuple[int, str, int]]:
    """(process, address, port) of a process's and its descendants' listening sockets now."""
    found = set()
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return set()
    for process in processes:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found.add((process.pid, connection.laddr.ip, connection.laddr.port))
    return found


def other_address() -> str | None:
    """An IPv4 address of this machine that is not loopback, or None."""
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family.name == "AF_INET" and not entry.address.startswith("127."):
                address: str = entry.address
                return address
    return None
