"""Moves a process into namespaces of its own, onto a file system of a few read-only folders.

The order: unshare; map the users; fork, as process 1 of the new namespace; private mounts; a new
root with what may be read; everything read-only; the old root gone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from passk_fast.tasks.sandbox import system
from passk_fast.tasks.sandbox.protocol import SCRATCH

NOBODY = 65534
"""User and group of the verdicts, as seen from inside."""
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NEW_ROOT = "/tmp"
_OLD_ROOT = "/.old"


def enter_namespaces(readable: Iterable[str], scratch_mib: int) -> bool:
    """Continue as process 1 of new namespaces; the process that called waits for it and ends.

    Returns whether verdicts can run under another user (NOBODY) than this process, which the
    kernel allows only to a real root.

    Raises:
        OSError: a step is not allowed here; the text names it.
    """
    links, folders = _layout(readable)
    two_users = _unshare_and_map()
    child = os.fork()
    if child:
        os.closerange(0, 1 << 16)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
    _build_root(links, folders)
    fresh_scratch(scratch_mib, first=True)
    os.chdir("/")
    return two_users


def _unshare_and_map() -> bool:
    user, group = os.geteuid(), os.getegid()
    flags = system.CLONE_NEWUSER | system.CLONE_NEWPID | system.CLONE_NEWNET
    flags |= system.CLONE_NEWIPC | system.CLONE_NEWNS | system.CLONE_NEWUTS
    if user == 0 and _unshare_as_root(flags | system.CLONE_NEWCGROUP):
        return True
    system.unshare(flags | system.CLONE_NEWCGROUP)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1\n")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1\n")
    return False


def _unshare_as_root(flags: int) -> bool:
    """Map root and nobody, which only a process that stays outside may write; False: it may not.

    On False nothing has happened to this process: a trial ran in a child.
    """
    if not _maps_two_users(system.CLONE_NEWUSER, trial=True):
        return False
    return _maps_two_users(flags, trial=False)


def _maps_two_users(flags: int, *, trial: bool) -> bool:
    """Unshare here (or, as a trial, in a child) while a helper outside writes the maps."""
    if trial:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        try:
            os._exit(0 if _maps_two_users(flags, trial=False) else 1)
        except BaseException:
            os._exit(1)
    ready_read, ready_write = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(ready_write)
            os.read(ready_read, 1)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{target}/{name}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            os._exit(0)
        except BaseException:
            os._exit(1)
    try:
        system.unshare(flags)
    finally:
        os.close(ready_write)
        os.close(ready_read)
        _, status = os.waitpid(helper, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _layout(readable: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(symbolic links to make again, real paths to bind), so that every path still leads there."""
    links: dict[str, str] = {}
    real: set[str] = set()
    waiting = [os.path.abspath(path) for path in readable]
    while waiting:
        path = waiting.pop()
        if not os.path.exists(path):
            continue
        for part in (*reversed(Path(path).parents), Path(path)):
            if part.is_symlink() and str(part) not in links:
                links[str(part)] = os.readlink(part)
                waiting.append(os.path.normpath(part.parent / os.readlink(part)))
        real.add(os.path.realpath(path))
    binds = [p for p in sorted(real) if not any(q != p and _inside(p, q) for q in real)]
    return {a: b for a, b in links.items() if not any(_inside(a, q) for q in binds)}, binds


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _build_root(links: dict[str, str], binds: list[str]) -> None:
    quiet = system.MS_NOSUID | system.MS_NODEV
    system.mount("none", "/", flags=system.MS_REC | system.MS_PRIVATE)
    system.mount("tmpfs", _NEW_ROOT, "tmpfs", quiet, "size=1m,mode=755")
    os.mkdir(_NEW_ROOT + _OLD_ROOT)
    system.pivot_root(_NEW_ROOT, _NEW_ROOT + _OLD_ROOT)
    os.chdir("/")
    read_only = system.MOUNT_ATTR_RDONLY | system.MOUNT_ATTR_NOSUID | system.MOUNT_ATTR_NODEV
    for path in binds:
        _bind(_OLD_ROOT + path, path)
        system.set_mount_attributes(path, read_only, recursive=True)
    for path, target in links.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            os.symlink(target, path)
    for folder in (SCRATCH, "/proc", "/dev"):
        os.makedirs(folder, exist_ok=True)
    if not os.path.lexists("/tmp"):
        os.symlink(SCRATCH, "/tmp")
    system.mount("tmpfs", "/dev", "tmpfs", quiet, "size=64k,mode=755")
    for name in _DEVICES:
        if os.path.exists(f"{_OLD_ROOT}/dev/{name}"):
            _bind(f"{_OLD_ROOT}/dev/{name}", f"/dev/{name}")
    system.set_mount_attributes("/dev", system.MOUNT_ATTR_RDONLY, recursive=False)
    try:
        flags = quiet | system.MS_NOEXEC | system.MS_RDONLY
        system.mount("proc", "/proc", "proc", flags)
    except OSError:
        pass  # a container that hides parts of /proc allows no new one: then there is none
    system.unmount(_OLD_ROOT)
    os.rmdir(_OLD_ROOT)
    system.set_mount_attributes("/", read_only, recursive=False)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    system.mount(source, target, flags=system.MS_BIND | system.MS_REC)


def fresh_scratch(size_mib: int, *, first: bool = False) -> None:
    """Replace the scratch folder, with whatever lies there, by an empty one."""
    if not first:
        os.chdir("/")
        system.unmount(SCRATCH)
    options = f"size={size_mib}m,nr_inodes=4096,mode=1777"
    system.mount("tmpfs", SCRATCH, "tmpfs", system.MS_NOSUID | system.MS_NODEV, options)
