"""What passes between a sandbox and its owner, and the limits of one verdict.

Towards the sandbox: pickles, from code that is trusted. Back: one status byte and one float64; the
owner reads nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

VERDICT = struct.Struct("<Bd")
"""Status and reward."""
SCRATCH = "/scratch"
"""The only folder of a contained verdict that can be written; /tmp leads there, unless something
that must be readable lies in /tmp."""
LENGTH = struct.Struct("<Q")
"""Stands before each message to the sandbox: its length in bytes."""


class Status(IntEnum):
    """How a verdict came about. Only JUDGED comes with a reward."""

    JUDGED = 0
    RAISED = 1
    """The verifier raised an exception."""
    OUT_OF_MEMORY = 2
    TOO_DEEP = 3
    """RecursionError."""
    LEFT = 4
    """SystemExit or KeyboardInterrupt."""
    NOT_A_REWARD = 5
    """The value is no number, not finite, or outside [0, 1]."""
    TIMED_OUT = 6
    """The wall-clock deadline or the limit of CPU time."""
    DIED = 7
    """Killed, crashed, or ended without a verdict."""


class Containment(StrEnum):
    """What stands around the verifiers."""

    NAMESPACES = "namespaces"
    """User, pid, net, ipc and mount namespaces that the sandbox makes itself."""
    BUBBLEWRAP = "bubblewrap"
    """The same by the program `bwrap`."""
    LIMITS = "limits"
    """Resource limits and deadlines alone: for verifiers that execute nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one verdict, or of one test of a program."""

    wall_s: float = 5.0
    cpu_s: int = 5
    memory_mib: int = 1024
    """Address space beyond what the sandbox itself takes."""
    processes: int = 1
    """Processes and threads of the verdict, its own included. Not counted under
    `Containment.LIMITS`; where the kernel does not count, new processes are refused altogether."""
    open_files: int = 64
    file_mib: int = 16
    """The largest file, the largest output, and the room of `SCRATCH`."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name} must be above 0, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ProgramTest:
    """One test of a program: its output on `stdin`, or statements that must not raise."""

    stdin: str = ""
    stdout: str | None = None
    """What it must print; outer space and space at the ends of lines do not count."""
    code: str = ""
    """With `stdout` None: run after the program, in its namespace, such as `assert f(2) == 4`."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """Python text and what it is tested with; its reward is the share of tests that pass."""

    source: str
    tests: tuple[ProgramTest, ...]
    wall_s: float = 20.0
    """For all tests together; those that have not begun by then are not passed."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A verifier by its place, `module:function`, and what it is called with."""

    function: str
    arguments: tuple[object, ...]
    in_every_verdict: bool = False
    """Run by the sandbox itself, once, so that what it caches is there in the verdicts to come.
    Only for functions and arguments that come from no model."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The first message to a sandbox."""

    containment: Containment
    limits: Limits
    readable: tuple[str, ...]
    """Files and folders that exist in the sandbox; nothing else does."""
    preload: tuple[str, ...]
    """Modules that are imported once, before the first verdict."""
