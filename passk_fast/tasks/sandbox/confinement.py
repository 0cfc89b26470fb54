"""What a child does to itself before it runs a verifier: limits, another user, no privileges."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass

from passk_fast.tasks.sandbox import system
from passk_fast.tasks.sandbox.namespaces import NOBODY
from passk_fast.tasks.sandbox.protocol import Containment, Limits
from passk_fast.tasks.sandbox.seccomp import refuse_system_calls

_MIB = 1 << 20
_TRUSTED_PROCESSES = 2
"""Of the sandbox itself, where the verdicts run under the same user."""


def own_address_space() -> int:
    """Bytes of address space of this process; a generous guess where /proc is hidden."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2048 * _MIB


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a sandbox has found out about itself."""

    base: int
    """Bytes of address space that the limit of memory comes on top of."""
    two_users: bool
    """Verdicts run under another user than the sandbox."""
    counted: bool
    """The kernel counts the verdicts' processes, as it does for all users but a real root."""


def confine(limits: Limits, containment: Containment, ground: Ground) -> None:
    """Bind this process, and all that it starts, to the limits; there is no way back."""
    os.setsid()
    cpu_s = math.ceil(limits.cpu_s)
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    _limit(resource.RLIMIT_AS, ground.base + limits.memory_mib * _MIB)
    _limit(resource.RLIMIT_FSIZE, limits.file_mib * _MIB)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    if containment is Containment.LIMITS:
        return
    trusted = 0 if ground.two_users else _TRUSTED_PROCESSES
    _limit(resource.RLIMIT_NPROC, trusted + limits.processes)
    if ground.two_users:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    system.drop_capabilities()
    system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
    refuse_system_calls(forks=limits.processes > 1 and ground.counted)


def _limit(what: int, soft: int, hard: int | None = None) -> None:
    _, most = resource.getrlimit(what)
    wanted = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        soft, wanted = min(soft, most), min(wanted, most)
    resource.setrlimit(what, (soft, wanted))
