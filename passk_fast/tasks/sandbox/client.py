"""The owner's side of a sandbox: starts it, sends what is to be judged, reads nine bytes back."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from passk_fast.errors import ConfigError
from passk_fast.tasks.sandbox.protocol import (
    LENGTH,
    SCRATCH,
    VERDICT,
    Call,
    Containment,
    Limits,
    Program,
    Settings,
    Status,
)

_START_S = 120.0
"""For Python to start and the preloaded modules to be imported, on a busy machine."""
_SLACK_S = 5.0
"""On top of the deadlines that the sandbox keeps itself."""
_RUN = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from passk_fast.tasks.sandbox.server import main
main()
"""
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"),
)


Function = Callable[..., float] | str


class SandboxError(ConfigError):
    """No sandbox can be made on this machine; the message says why."""


class VerifierFailed(Exception):
    """A verifier gave no reward: it raised, ran out of time or memory, or gave no number."""


@dataclass(frozen=True)
class Verdict:
    """What became of one call. `reward` is in [0, 1], and 0 unless `status` is JUDGED."""

    status: Status
    reward: float


@dataclass
class _Process:
    """A running sandbox."""

    popen: subprocess.Popen[bytes]
    channel: socket.socket
    errors: IO[bytes]

    def end(self) -> None:
        self.channel.close()
        self.popen.kill()
        self.popen.wait()
        self.errors.close()


class Sandbox:
    """One sandbox process; it starts with the first verdict, and anew where it was lost.

    Verdicts follow one another; each is a process of its own, so none influences the next.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        preload: tuple[str, ...] = (),
        executes_code: bool = True,
        containment: Containment | None = None,
    ) -> None:
        """`preload` names modules that verdicts need: imported once, and readable inside.

        With `executes_code` False the verifiers only read text: without namespaces they run under
        limits and deadlines alone. `containment` None is the first kind that works here.

        Raises:
            SandboxError: verifiers that execute code cannot be contained here.
        """
        if executes_code and containment is Containment.LIMITS:
            raise SandboxError("limits alone do not contain verifiers that execute code.")
        self._limits = Limits() if limits is None else limits
        self.containment = containment or _containment(executes_code)
        self._settings = Settings(
            containment=self.containment,
            limits=self._limits,
            readable=_readable(preload),
            preload=preload,
        )
        self._process: _Process | None = None
        self._prepared: list[Call] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def call(self, function: Function, *arguments: object) -> Verdict:
        """The verdict of a function on picklable arguments.

        The function stands in a module by itself (no lambda, no method), and may be given as
        "module:function" where importing it here would be slow.
        """
        call = Call(function=_name(function), arguments=arguments)
        with self._lock:
            return self._ask(call, self._limits.wall_s)

    def prepare(self, function: Function, *arguments: object) -> None:
        """Run a function once in the sandbox itself: what it caches, every later verdict finds.

        Neither it nor its arguments may come from a model. It returns any number in [0, 1].

        Raises:
            VerifierFailed: it raised.
        """
        call = Call(function=_name(function), arguments=arguments, in_every_verdict=True)
        with self._lock:
            if self._process is not None and call in self._prepared:
                return
            verdict = self._ask(call, _START_S)
            if verdict.status is not Status.JUDGED:
                raise VerifierFailed(f"{call.function}{arguments}: cannot be prepared")
            self._prepared.append(call)

    def judge(self, function: Function, *arguments: object) -> float:
        """The reward of `call`; VerifierFailed where there is none."""
        verdict = self.call(function, *arguments)
        if verdict.status is not Status.JUDGED:
            what = verdict.status.name.lower().replace("_", " ")
            raise VerifierFailed(f"{_name(function)}: no reward: {what}")
        return verdict.reward

    def run(self, program: Program) -> Verdict:
        """The share of its tests that a program passes. SandboxError without namespaces."""
        if self.containment is Containment.LIMITS:
            raise SandboxError("programs run only in a sandbox made with `executes_code`.")
        if not program.tests:
            raise ValueError("a program needs at least one test.")
        with self._lock:
            return self._ask(program, program.wall_s + self._limits.wall_s)

    def close(self) -> None:
        """End the process; the next verdict would start another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.end()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, request: Call | Program, wall_s: float) -> Verdict:
        if self._process is None:
            self._process = _start(self._settings)
            self._prepared.clear()
        message = pickle.dumps(request)
        channel = self._process.channel
        try:
            channel.settimeout(wall_s + _SLACK_S)
            channel.sendall(LENGTH.pack(len(message)) + message)
            answer = _answer(channel)
        except TimeoutError:
            answer = Verdict(Status.TIMED_OUT, 0.0)
            self.close()
        except OSError:
            answer = None
        if answer is None:
            self.close()
            return Verdict(Status.DIED, 0.0)
        return answer


def _name(function: Function) -> str:
    if isinstance(function, str):
        return function
    name = f"{function.__module__}:{function.__qualname__}"
    if not function.__qualname__.isidentifier():
        raise ValueError(f"{name} must be a function that stands in a module by itself.")
    return name


def _answer(channel: socket.socket) -> Verdict | None:
    """The next verdict; None at the end of the channel, or for bytes that are none."""
    data = b""
    while len(data) < VERDICT.size:
        part = channel.recv(VERDICT.size - len(data))
        if not part:
            return None
        data += part
    status, reward = VERDICT.unpack(data)
    if status >= len(Status) or not 0.0 <= reward <= 1.0:
        return None
    return Verdict(Status(status), reward)


def _start(settings: Settings) -> _Process:
    mine, theirs = socket.socketpair()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    paths = [os.path.abspath(path) for path in sys.path]
    command = [sys.executable, "-P", "-s", "-c", _RUN, json.dumps(paths)]
    if settings.containment is Containment.BUBBLEWRAP:
        command = [*_bubblewrap(settings), *command]
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if settings.containment is not Containment.LIMITS:
        environment |= {"HOME": SCRATCH, "TMPDIR": SCRATCH}
    with theirs:
        popen = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    process = _Process(popen, mine, errors)
    message = pickle.dumps(settings)
    try:
        mine.settimeout(_START_S)
        mine.sendall(LENGTH.pack(len(message)) + message)
        ready = _answer(mine)
    except OSError:
        ready = None
    if ready is None:
        popen.kill()
        popen.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        process.end()
        raise SandboxError(lines[-1] if lines else "its process ended at once")
    return process


def _bubblewrap(settings: Settings) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session"]
    for path in settings.readable:
        command += ["--ro-bind-try", path, path]
    size = str(settings.limits.file_mib << 20)
    command += ["--dev", "/dev", "--remount-ro", "/dev", "--proc", "/proc"]
    if not any(path.startswith("/tmp/") for path in settings.readable):
        command += ["--symlink", SCRATCH, "/tmp"]
    return [*command, "--size", size, "--tmpfs", SCRATCH, "--remount-ro", "/", "--"]


def _readable(preload: tuple[str, ...]) -> tuple[str, ...]:
    """What Python and the preloaded modules need; not the folders that modules are found in."""
    paths = [*_SYSTEM, sys.base_prefix, sys.prefix, os.path.dirname(sys.executable)]
    paths += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for name in ("passk_fast", *preload):
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if spec.submodule_search_locations:
            folders = list(spec.submodule_search_locations)
            linked = (path for folder in folders for path in Path(folder).iterdir())
            paths += [*folders, *(str(path.resolve()) for path in linked if path.is_symlink())]
        elif spec.origin is not None:
            paths.append(spec.origin)
    return tuple(dict.fromkeys(path for path in paths if Path(path).exists()))


@lru_cache(maxsize=1)
def _first_that_works() -> tuple[Containment | None, str]:
    """(what can contain code on this machine, why not what comes before it)."""
    reasons = []
    for containment in (Containment.NAMESPACES, Containment.BUBBLEWRAP):
        if containment is Containment.BUBBLEWRAP and shutil.which("bwrap") is None:
            reasons.append("bubblewrap: not installed")
            continue
        settings = Settings(
            containment=containment, limits=Limits(), readable=_readable(()), preload=()
        )
        try:
            _start(settings).end()
        except SandboxError as error:
            reasons.append(f"{containment}: {error}")
        else:
            return containment, "; ".join(reasons)
    return None, "; ".join(reasons)


def unavailable_reason() -> str | None:
    """Why verifiers that execute code cannot be contained here; None where they can."""
    found, reasons = _first_that_works()
    return reasons if found is None else None


def _containment(executes_code: bool) -> Containment:
    found, reasons = _first_that_works()
    if found is not None:
        return found
    if executes_code:
        raise SandboxError(
            "verifiers that execute what a model wrote are refused on this machine, since nothing "
            f"can contain them: {reasons}. Allow user namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, or the container's seccomp profile), or install "
            "bubblewrap."
        )
    return Containment.LIMITS


@lru_cache(maxsize=16)
def _shared(owner: int, limits: Limits, preload: tuple[str, ...], executes_code: bool) -> Sandbox:
    sandbox = Sandbox(limits=limits, preload=preload, executes_code=executes_code)
    atexit.register(sandbox.close)
    return sandbox


def shared_sandbox(
    *, limits: Limits, preload: tuple[str, ...] = (), executes_code: bool = True
) -> Sandbox:
    """This process's sandbox of these settings; it ends with the process."""
    return _shared(os.getpid(), limits, preload, executes_code)
