"""Linux system calls that Python has no function for, by ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence

MACHINE = platform.machine()
_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER = 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_RDONLY = 2, 4, 8, 1
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442  # the same on all machines
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _SockFilter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _SockProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_SockFilter)))


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, value: int) -> None:
    """One of the PR_ operations that take one number."""
    zero = ctypes.c_ulong(0)
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    values = (source.encode(), target.encode(), kind.encode() or None)
    result = _LIBC.mount(*values, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount {target}")


def unmount(target: str) -> None:
    """Detach a mount at once, whatever still uses it."""
    _check(_LIBC.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def set_mount_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """Set MOUNT_ATTR_ flags on a mount, and with `recursive` on those below it."""
    values = _MountAttributes(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(values))
    flags = ctypes.c_uint(_AT_RECURSIVE if recursive else 0)
    number = ctypes.c_long(_MOUNT_SETATTR)
    result = _LIBC.syscall(number, _AT_FDCWD, path.encode(), flags, ctypes.byref(values), size)
    _check(result, f"mount_setattr {path}")


def pivot_root(new: str, put_old: str) -> None:
    """Make the mount `new` the root; the old root appears at `put_old` below it."""
    number = ctypes.c_long(_PIVOT_ROOT[MACHINE])
    _check(_LIBC.syscall(number, new.encode(), put_old.encode()), "pivot_root")


def drop_capabilities() -> None:
    """Give up every capability of this process, now and across exec."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # not held in the first place, or past the last one
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    number = ctypes.c_long(_CAPSET[MACHINE])
    _check(_LIBC.syscall(number, ctypes.byref(header), ctypes.byref(nothing)), "capset")


def install_filter(instructions: Sequence[tuple[int, int, int, int]]) -> None:
    """Install a seccomp filter: (code, jump if true, jump if false, value) of each instruction."""
    array = (_SockFilter * len(instructions))(*(_SockFilter(*i) for i in instructions))
    program = _SockProgram(len(instructions), array)
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(2)  # SECCOMP_MODE_FILTER
    _check(_LIBC.prctl(PR_SET_SECCOMP, mode, ctypes.byref(program), zero, zero), "seccomp")
