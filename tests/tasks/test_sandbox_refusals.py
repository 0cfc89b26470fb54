"""Limits, calls that are refused, and what a verdict is made of."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest

from passk_fast.tasks.sandbox import (
    Containment,
    Limits,
    Program,
    ProgramTest,
    Sandbox,
    Status,
    Verdict,
    VerifierFailed,
    shared_sandbox,
    unavailable_reason,
)
from passk_fast.tasks.sandbox.programs import files_of, passed, same_output
from passk_fast.tasks.sandbox.protocol import VERDICT, Call
from passk_fast.tasks.sandbox.verdicts import judged
from tests.tasks import payloads

contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Limits alone: the calls here are harmless, and every machine has them."""
    limits = Limits(wall_s=30.0, cpu_s=1, memory_mib=256)
    preload = ("tests.tasks.payloads",)
    kind = Containment.LIMITS
    with Sandbox(limits=limits, preload=preload, executes_code=False, containment=kind) as made:
        yield made


@pytest.mark.parametrize("name", sorted(vars(Limits())))
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_every_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name} must be above 0, got {value}"):
        Limits(**{name: value})


def test_processor_time_is_bounded_apart_from_the_clock(sandbox: Sandbox) -> None:
    """One second of CPU time; the deadline of 30 s is not what ends it."""
    assert sandbox.call(payloads.flood).status is Status.TIMED_OUT
    assert sandbox.judge(payloads.constant, 1.0) == 1.0


def test_a_verifier_may_be_named_by_its_place(sandbox: Sandbox) -> None:
    assert sandbox.judge("math:cos", 0.0) == 1.0
    assert sandbox.judge("tests.tasks.payloads:constant", 0.5) == 0.5


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_function", "math", ":cos", ""])
def test_a_place_that_holds_no_function_is_a_failed_verdict(sandbox: Sandbox, name: str) -> None:
    assert sandbox.call(name, 0.0) == Verdict(Status.RAISED, 0.0)


def test_methods_and_inner_functions_are_refused(sandbox: Sandbox) -> None:
    def inner() -> float:
        return 1.0

    for function in (inner, Sandbox.judge):
        with pytest.raises(
            ValueError, match="must be a function that stands in a module by itself"
        ):
            sandbox.judge(function)


def test_arguments_that_cannot_travel_leave_the_sandbox_as_it_was(sandbox: Sandbox) -> None:
    with pytest.raises(TypeError, match="pickle"):
        sandbox.call(payloads.constant, threading.Lock())
    assert sandbox.judge(payloads.constant, 0.25) == 0.25


def test_wrong_arguments_are_a_failed_verdict(sandbox: Sandbox) -> None:
    assert sandbox.call(math.cos) == Verdict(Status.RAISED, 0.0)
    with pytest.raises(VerifierFailed, match="math:cos: no reward: raised"):
        sandbox.judge(math.cos, "0")


@pytest.mark.parametrize(
    ("payload", "argument", "words"),
    [
        (payloads.evaluate, "exit()", "no reward: left"),
        (payloads.evaluate, "bytearray(10**10)", "no reward: out of memory"),
        (payloads.evaluate, "__import__('os').abort()", "no reward: died"),
        (payloads.recurse, 0, "no reward: too deep"),
        (payloads.constant, 2, "no reward: not a reward"),
    ],
)
def test_each_failure_has_its_words(
    sandbox: Sandbox, payload: object, argument: object, words: str
) -> None:
    assert callable(payload)
    with pytest.raises(VerifierFailed, match=words):
        sandbox.judge(payload, argument)


def test_a_missing_module_is_named_before_anything_starts() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module_here"):
        Sandbox(preload=("no_such_module_here.inner",), executes_code=False)


def test_what_was_prepared_is_prepared_again_after_a_restart() -> None:
    preload = ("tests.tasks.payloads",)
    with Sandbox(preload=preload, executes_code=False, containment=Containment.LIMITS) as sandbox:
        times = []
        for _ in range(2):
            sandbox.prepare(payloads.remembered)
            sandbox.prepare(payloads.remembered)
            times.append({sandbox.judge(payloads.remembered) for _ in range(3)})
            sandbox.close()
    assert [len(some) for some in times] == [1, 1]
    assert times[0] != times[1], "another process, another time"


def test_a_process_shares_one_sandbox_per_kind_of_limits() -> None:
    one, same = (shared_sandbox(limits=Limits(wall_s=7.0), executes_code=False) for _ in range(2))
    other = shared_sandbox(limits=Limits(wall_s=8.0), executes_code=False)
    assert one is same
    assert one is not other
    assert one.judge(math.cos, 0.0) == other.judge(math.cos, 0.0) == 1.0
    one.close()
    other.close()


def test_an_owner_reads_nine_bytes() -> None:
    assert VERDICT.size == 9
    assert VERDICT.unpack(VERDICT.pack(Status.JUDGED, 0.5)) == (Status.JUDGED, 0.5)


@pytest.mark.parametrize(
    ("function", "arguments", "want"),
    [
        ("math:cos", (0.0,), (Status.JUDGED, 1.0)),
        ("tests.tasks.payloads:constant", (True,), (Status.JUDGED, 1.0)),
        ("tests.tasks.payloads:constant", (math.nan,), (Status.NOT_A_REWARD, 0.0)),
        ("tests.tasks.payloads:constant", ("1",), (Status.NOT_A_REWARD, 0.0)),
        ("math:sqrt", (-1.0,), (Status.RAISED, 0.0)),
        ("math:factorial", (10**30,), (Status.RAISED, 0.0)),
        ("tests.tasks.payloads:recurse", (), (Status.TOO_DEEP, 0.0)),
        ("tests.tasks.payloads:evaluate", ("__import__('sys').exit(0)",), (Status.LEFT, 0.0)),
        ("tests.tasks.payloads:execute", ("raise KeyboardInterrupt",), (Status.LEFT, 0.0)),
        ("tests.tasks.payloads:execute", ("raise MemoryError",), (Status.OUT_OF_MEMORY, 0.0)),
        ("tests.tasks.payloads:execute", ("raise BaseException",), (Status.RAISED, 0.0)),
        ("tests.tasks.payloads:execute", ("1 +",), (Status.RAISED, 0.0)),
    ],
)
def test_whatever_a_verifier_does_becomes_a_status_and_a_number(
    function: str, arguments: tuple[object, ...], want: tuple[Status, float]
) -> None:
    assert judged(Call(function=function, arguments=arguments)) == want


@pytest.mark.parametrize(
    ("printed", "wanted", "same"),
    [
        (b"1 2\n3\n", "1 2\n3", True),
        (b"\n\n1 2  \r\n3\n\n", "1 2\n3", True),
        (b"", "\n", True),
        (" ü\ud800".encode(errors="surrogatepass"), "ü\ud800", True),
        (b"1  2\n3", "1 2\n3", False),
        (b"1 2\n\n3", "1 2\n3", False),
        (b"1 2 3", "1 2\n3", False),
        (b"1 2\n  3", "1 2\n3", False),
        (b"1.0", "1", False),
        (b"YES", "yes", False),
        (b"", "0", False),
    ],
)
def test_outputs_are_equal_line_by_line(printed: bytes, wanted: str, same: bool) -> None:
    assert same_output(printed, wanted) is same


def test_a_test_by_output_lets_the_program_see_nothing_of_it() -> None:
    by_output = files_of("x = 1", ProgramTest(stdin="1", stdout="secret"))
    assert list(by_output.values()) == [b"x = 1"]
    by_statement = files_of("x = '\ud800'", ProgramTest(code="assert x"))
    assert b"x = '\xed\xa0\x80'" in by_statement.values()
    assert b"assert x" in by_statement.values()
    assert len(by_statement) == 3, "with what runs the two"


def test_a_passed_statement_reports_a_mark_that_the_program_has_not_seen() -> None:
    assert passed(b"\1\2\3") == b"\3\2\1"


@contained
def test_a_program_cannot_change_the_tests_that_follow() -> None:
    source = "import os\nfor name in os.listdir('.'):\n    os.unlink(name)\nprint(input())"
    tests = tuple(ProgramTest(stdin=f"{n}\n", stdout=f"{n}") for n in range(3))
    with Sandbox() as sandbox:
        assert sandbox.run(Program(source=source, tests=tests)) == Verdict(Status.JUDGED, 1.0)


@contained
def test_output_beyond_its_limit_fails_the_test() -> None:
    program = Program(source="print('x' * (3 << 20))", tests=(ProgramTest(stdout="x"),))
    with Sandbox(limits=Limits(file_mib=1)) as sandbox:
        assert sandbox.run(program) == Verdict(Status.JUDGED, 0.0)
