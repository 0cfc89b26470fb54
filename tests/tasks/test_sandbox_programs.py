"""Programs in a sandbox: the share of their tests that pass, whatever they try."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from passk_fast.tasks.sandbox import (
    Limits,
    Program,
    ProgramTest,
    Sandbox,
    Status,
    unavailable_reason,
)

LIMITS = Limits(wall_s=10.0, cpu_s=10, memory_mib=256, file_mib=4)
SHORT = replace(LIMITS, wall_s=1.0, cpu_s=1)
HANG_S = 90.0
"""Seconds that only a hang can exceed, on however busy a machine."""
contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)


def _share(source: str, *tests: ProgramTest, limits: Limits = LIMITS) -> float:
    with Sandbox(limits=limits) as sandbox:
        verdict = sandbox.run(Program(source=source, tests=tests))
    assert verdict.status is Status.JUDGED
    return verdict.reward


DOUBLE = tuple(ProgramTest(stdin=f"{n}\n", stdout=f"{2 * n}\n") for n in (1, 2, 3, 4))


@contained
@pytest.mark.parametrize(
    ("source", "share"),
    [
        ("print(2 * int(input()))", 1.0),
        ("print(2 * int(input()), '  \\n\\n')", 1.0),
        ("n = int(input())\nprint(2 * n if n < 3 else 0)", 0.5),
        ("n = int(input())\nprint(2 * n)\n1 / (n - 1)", 0.75),
        ("print(2)", 0.25),
        ("", 0.0),
        ("syntax error", 0.0),
        ("print('\\ud800')", 0.0),
        ("\ud800", 0.0),
        ("\0", 0.0),
        ("import os; os._exit(0)", 0.0),
        ("raise SystemExit", 0.0),
        ("print(2 * int(input()) if open('seen', 'a').tell() == 0 else 0)", 1.0),
        ("import multiprocessing.pool as p; p.ThreadPool(2)", 0.0),
    ],
)
def test_share_of_outputs_that_are_right(source: str, share: float) -> None:
    assert _share(source, *DOUBLE) == share


@contained
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "while True: print('x' * 65536)",
        "import time; time.sleep(1000)",
        "9**9**9**9",
        "x = [0]\nwhile True: x += x",
        "import os\nwhile True: os.fork()",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    ],
)
def test_hostile_programs_earn_nothing(source: str) -> None:
    start = time.monotonic()
    assert _share(source, *DOUBLE[:2], limits=SHORT) == 0.0
    assert time.monotonic() - start < HANG_S


ASSERTS = tuple(ProgramTest(code=f"assert double({n}) == {2 * n}") for n in (1, 2, 3, 4))


@contained
@pytest.mark.parametrize(
    ("source", "share"),
    [
        ("def double(n): return 2 * n", 1.0),
        ("def double(n): return 2 * n if n > 1 else None", 0.75),
        ("double = 2", 0.0),
        ("", 0.0),
        ("import os\ndef double(n): os._exit(0)", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("def double(n): raise SystemExit(0)", 0.0),
        ("import os\nos.write(3, b'x' * 16)\nos._exit(0)", 0.0),
        ("import os\nprint(open('check.py').read())", 0.0),
        ("def double(n): return 2 * n\nif __name__ == '__main__': raise ValueError", 1.0),
        ("def double(n): return 2 * n\nimport os; os._exit = os.write = None", 1.0),
    ],
)
def test_share_of_statements_that_hold(source: str, share: float) -> None:
    assert _share(source, *ASSERTS) == share


@contained
def test_all_tests_together_have_a_deadline() -> None:
    start = time.monotonic()
    with Sandbox(limits=SHORT) as sandbox:
        program = Program(source="while True: pass", tests=DOUBLE * 25, wall_s=1.5)
        assert sandbox.run(program).reward == 0.0
    assert time.monotonic() - start < HANG_S


@contained
def test_a_program_can_use_some_threads_if_it_may() -> None:
    source = (
        "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(2).map(int, '12')))"
    )
    three = ProgramTest(stdout="3")
    assert _share(source, three) == 0.0
    assert _share(source, three, limits=Limits(processes=8)) == 1.0
