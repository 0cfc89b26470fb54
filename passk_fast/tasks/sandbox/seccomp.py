"""The system calls that a contained verifier may not make, whatever its namespaces would allow.

They make namespaces, mounts and network sockets, look into other processes, or hold memory that no
resource limit counts.
"""

from __future__ import annotations

import errno

from passk_fast.tasks.sandbox.system import MACHINE, install_filter

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED: dict[str, tuple[int, int]] = {  # by their numbers on x86_64 and aarch64
    "add_key": (248, 217),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "socket": (41, 198),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_FORKS = {"x86_64": (57, 58), "aarch64": ()}  # fork and vfork; ARM64 has clone alone
_CLONE = (56, 220)
_CLONE_THREAD = 0x10000
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
_X32 = 0x40000000

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return MACHINE in _AUDIT_ARCH


def _filter(forks: bool) -> list[Instruction]:
    column = 0 if MACHINE == "x86_64" else 1
    refused = sorted(numbers[column] for numbers in _REFUSED.values())
    refused += [] if forks else _FORKS[MACHINE]
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[MACHINE]),
        refuse,
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER_EQUAL, 0, 1, _X32),
        refuse,
    ]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), refuse]
    # Its flags lie in memory, where a filter cannot look: the C library falls back to clone.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    program += [
        (_EQUAL, 0, 3 if forks else 5, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        refuse,
    ]
    if not forks:
        program += [(_ANY_BIT, 1, 0, _CLONE_THREAD), refuse]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def refuse_system_calls(*, forks: bool) -> None:
    """From now on, in this process and all that it starts, they fail with EPERM.

    Without `forks` new processes fail too; new threads do not.
    """
    install_filter(_filter(forks))
