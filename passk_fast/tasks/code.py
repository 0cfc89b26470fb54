"""The task `code`: the reward is the share of tests that the response's program passes.

Programs are Python and run in a sandbox. The tests stand in the row's columns or in its answer, in
the layouts of the published data sets (docs/rewards.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from passk_fast.data.types import Prompt
from passk_fast.tasks.answers import last_answer
from passk_fast.tasks.sandbox import (
    Limits,
    Program,
    ProgramTest,
    SandboxError,
    Status,
    VerifierFailed,
    shared_sandbox,
    unavailable_reason,
)

LIMITS = Limits(wall_s=5.0, cpu_s=5, memory_mib=512, processes=4, open_files=64)
_PYTHON = ("python", "python3", "py", "")


def program_of(response: str) -> str:
    """The last fenced block of Python; without one the last `<answer>` tag, else the response."""
    parts = response.split("```")
    closed = parts[1 : len(parts) - 1 : 2]  # a block that is never closed does not count
    for block in reversed(closed):
        first, newline, program = block.partition("\n")
        if newline and first.strip().lower() in _PYTHON:
            return program
    tagged = last_answer(response)
    return response if tagged is None else tagged


def program_tests(prompt: Prompt) -> tuple[ProgramTest, ...]:
    """The tests of a row.

    Raises:
        ValueError: there are none, or they have no form that is known.
    """
    row: dict[str, object] = dict(prompt.columns)
    if prompt.answer.lstrip().startswith(("{", "[")):
        try:
            answer = json.loads(prompt.answer)
        except (ValueError, RecursionError):
            raise ValueError("field 'answer' is not JSON") from None
        row = {**row, **answer} if isinstance(answer, Mapping) else {**row, "tests": answer}
    tests = _listed(row) or _inputs_and_outputs(row) or _check_function(row)
    if not tests:
        raise ValueError(
            "the row has no tests: it needs `tests`, `test_list`, `inputs` with `outputs`, or "
            "`test` with `entry_point`, as columns or as JSON in `answer`"
        )
    return tests


def _listed(row: Mapping[str, object]) -> tuple[ProgramTest, ...]:
    """`tests` (objects with stdin and stdout, or statements) or `test_list` (statements: MBPP)."""
    tests = _from_json(row.get("tests", row.get("test_list")))
    if tests is None:
        return ()
    if not isinstance(tests, list):
        raise ValueError("the tests must be a list")
    before = row.get("test_setup_code", "")
    imports = row.get("test_imports", [])
    lines = [*(imports if isinstance(imports, list) else []), before if before else ""]
    setup = "".join(f"{line}\n" for line in lines if line)
    return tuple(_test(test, setup) for test in tests)


def _test(test: object, setup: str) -> ProgramTest:
    if isinstance(test, str):
        return ProgramTest(code=setup + test)
    if isinstance(test, Mapping):
        if isinstance(code := test.get("code"), str):
            return ProgramTest(code=setup + code)
        stdin, stdout = test.get("stdin", test.get("input", "")), test.get("stdout")
        stdout = test.get("output") if stdout is None else stdout
        if isinstance(stdin, str) and isinstance(stdout, str):
            return ProgramTest(stdin=stdin, stdout=stdout)
    raise ValueError("a test must be a statement, or an object with `stdin` and `stdout` as text")


def _inputs_and_outputs(row: Mapping[str, object]) -> tuple[ProgramTest, ...]:
    """`inputs` and `outputs` of equal length (APPS, TACO), on their own or in `input_output`."""
    pair = _from_json(row.get("input_output"))
    source = pair if isinstance(pair, Mapping) else row
    inputs, outputs = _from_json(source.get("inputs")), _from_json(source.get("outputs"))
    if inputs is None and outputs is None:
        return ()
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("`inputs` and `outputs` must be lists of one length")
    function = source.get("fn_name")
    if isinstance(function, str):
        if not function.isidentifier():
            raise ValueError(f"`fn_name` is no name of a function: {function!r}")
        return tuple(_call(function, i, o) for i, o in zip(inputs, outputs, strict=True))
    return tuple(_test({"stdin": i, "stdout": o}, "") for i, o in zip(inputs, outputs, strict=True))


def _call(function: str, arguments: object, wanted: object) -> ProgramTest:
    """A function's value, also where it is a method of `Solution` or wrapped in a list."""
    if not isinstance(arguments, list):
        raise ValueError("with `fn_name`, each of `inputs` must be a list of arguments")
    return ProgramTest(
        code=f"_call = {function} if {function!r} in globals() else Solution().{function}\n"
        f"_value, _wanted = _call(*{arguments!r}), {wanted!r}\n"
        "_value = list(_value) if isinstance(_value, tuple) else _value\n"
        "assert _value == _wanted or [_value] == _wanted"
    )


def _check_function(row: Mapping[str, object]) -> tuple[ProgramTest, ...]:
    """`test`, which defines `check`, and `entry_point` (HumanEval)."""
    test, entry = row.get("test"), row.get("entry_point")
    if not isinstance(test, str) or not isinstance(entry, str):
        return ()
    return (ProgramTest(code=f"{test}\ncheck({entry})"),)


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("the tests are not JSON") from None
    return parsed


@dataclass(frozen=True)
class Code:
    """Runs the program of a response against the row's tests."""

    name: str = "code"

    def verify(self, prompt: Prompt, response: str) -> float:
        """The share of tests that pass, in [0, 1].

        Raises:
            VerifierFailed: the sandbox was lost.
        """
        program = Program(source=program_of(response), tests=program_tests(prompt))
        verdict = shared_sandbox(limits=LIMITS).run(program)
        if verdict.status is not Status.JUDGED:
            raise VerifierFailed(f"the sandbox gave no verdict: {verdict.status.name.lower()}")
        return verdict.reward

    def answer_of(self, response: str) -> str:
        """The program."""
        return program_of(response).strip()

    def check_prompt(self, prompt: Prompt) -> None:
        """ValueError for a row without tests; SandboxError where programs cannot be contained."""
        program_tests(prompt)
        reason = unavailable_reason()
        if reason is not None:
            raise SandboxError(
                "the task 'code' executes programs, and nothing can contain them on this machine: "
                f"{reason}. See docs/sandbox.md."
            )
