"""Freed memory stays in the process, so that the next tensor costs no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from passk_fast.host_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
libc, size = ctypes.CDLL(None), ctypes.c_size_t(20 << 20)
libc.malloc.restype = ctypes.c_void_p
def work():
    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, size.value)
    for block in reversed(blocks):
        libc.free(block)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):  # glibc's thresholds move with what is freed
    work()
before = faults()
for _ in range(4):
    work()
print(faults() - before)
"""


def run(mode: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
    )
    agreed, faults = done.stdout.split()
    return agreed, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_costs_no_page_faults() -> None:
    pages = 4 * 8 * (20 << 20) // os.sysconf("SC_PAGESIZE")
    assert run("leave")[1] > 0.5 * pages  # else this test shows nothing
    agreed, faults = run("keep")
    assert agreed == "True"
    assert faults < 0.02 * pages


def test_what_the_user_tuned_stays() -> None:
    assert run("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.mmap_max=0")[0] == "False"
