"""What each layout of a row becomes as tests, and when a row or its verdict is refused."""

from __future__ import annotations

import json

import pytest

from passk_fast.data.types import Prompt
from passk_fast.tasks.code import Code, program_tests
from passk_fast.tasks.sandbox import ProgramTest, SandboxError, Status, Verdict, VerifierFailed


def _prompt(answer: str = "", **columns: object) -> Prompt:
    return Prompt(id="0", text="?", answer=answer, task="code", columns=columns)


TWO = (ProgramTest(stdin="1\n", stdout="2\n"), ProgramTest(stdin="3\n", stdout="6\n"))
PAIR = {"inputs": ["1\n", "3\n"], "outputs": ["2\n", "6\n"]}
LIST = [{"stdin": "1\n", "stdout": "2\n"}, {"input": "3\n", "output": "6\n"}]


@pytest.mark.parametrize(
    "prompt",
    [
        _prompt(tests=LIST),
        _prompt(tests=json.dumps(LIST)),
        _prompt(json.dumps(LIST)),
        _prompt(json.dumps({"tests": LIST})),
        _prompt(f"\n {json.dumps(LIST)}"),
        _prompt(test_list=LIST),
        _prompt(**PAIR),
        _prompt(inputs=json.dumps(PAIR["inputs"]), outputs=json.dumps(PAIR["outputs"])),
        _prompt(input_output=PAIR),
        _prompt(input_output=json.dumps(PAIR)),
        _prompt(json.dumps(PAIR), level=3),
        _prompt("6", tests=LIST),
        _prompt(json.dumps({"tests": LIST}), tests=[{"stdin": "of the columns", "stdout": ""}]),
    ],
)
def test_one_pair_of_tests_in_many_forms(prompt: Prompt) -> None:
    assert program_tests(prompt) == TWO


def test_a_test_without_input_reads_nothing() -> None:
    assert program_tests(_prompt(tests=[{"stdout": "6"}])) == (ProgramTest(stdin="", stdout="6"),)


def test_imports_and_setup_stand_before_each_statement() -> None:
    prompt = _prompt(
        test_list=["assert f(1)", {"code": "assert f(2)"}],
        test_imports=["import math", "", "import re"],
        test_setup_code="one = 1",
    )
    before = "import math\nimport re\none = 1\n"
    assert [test.code for test in program_tests(prompt)] == [
        before + "assert f(1)",
        before + "assert f(2)",
    ]
    assert all(test.stdout is None for test in program_tests(prompt))


def test_arguments_and_values_become_statements() -> None:
    prompt = _prompt(inputs=[[1, "a'b"], []], outputs=[[True], None], fn_name="solve")
    first, second = program_tests(prompt)
    for test, arguments, wanted in ((first, (1, "a'b"), True), (second, (), None)):
        seen: list[object] = []

        def solve(*given: object, seen: list[object] = seen, value: object = wanted) -> object:
            seen.append(given)
            return value

        exec(test.code, {"solve": solve})
        assert seen == [arguments]
        with pytest.raises(AssertionError):
            exec(test.code, {"solve": lambda *given: "wrong"})


def test_a_tuple_is_as_good_as_the_list_that_json_can_hold() -> None:
    (test,) = program_tests(_prompt(inputs=[[1]], outputs=[[1, 2]], fn_name="solve"))
    exec(test.code, {"solve": lambda n: (n, n + 1)})


def test_humaneval_calls_its_check() -> None:
    prompt = _prompt(test="def check(candidate): assert candidate(1) == 2", entry_point="add")
    (test,) = program_tests(prompt)
    exec(test.code, {"add": lambda n: n + 1})
    with pytest.raises(AssertionError):
        exec(test.code, {"add": lambda n: n})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (_prompt("7"), "the row has no tests"),
        (_prompt(tests=[]), "the row has no tests"),
        (_prompt("[]"), "the row has no tests"),
        (_prompt(inputs=[], outputs=[]), "the row has no tests"),
        (_prompt(test="def check(f): ..."), "the row has no tests"),
        (_prompt(test=3, entry_point="f"), "the row has no tests"),
        (_prompt("[" * 100_000), "field 'answer' is not JSON"),
        (_prompt(tests="[" * 100_000), "the tests are not JSON"),
        (_prompt(tests="assert f(1)"), "the tests are not JSON"),
        (_prompt(tests=3), "the tests must be a list"),
        (_prompt(tests=[None]), "a test must be a statement, or an object with"),
        (_prompt(tests=[{"code": 1}]), "a test must be a statement, or an object with"),
        (_prompt(tests=[{"stdin": 1, "stdout": "2"}]), "`stdin` and `stdout` as text"),
        (_prompt(tests=[{"stdin": "1", "stdout": 2}]), "`stdin` and `stdout` as text"),
        (_prompt(inputs=["1"]), "`inputs` and `outputs` must be lists of one length"),
        (_prompt(outputs=["1"]), "`inputs` and `outputs` must be lists of one length"),
        (_prompt(inputs="3", outputs="[3]"), "`inputs` and `outputs` must be lists of one length"),
        (_prompt(inputs=[1], outputs=[2]), "`stdin` and `stdout` as text"),
        (_prompt(input_output="{"), "the tests are not JSON"),
        (_prompt(input_output=PAIR | {"fn_name": "f()"}), r"no name of a function: 'f\(\)'"),
        (_prompt(input_output=PAIR | {"fn_name": "f"}), "must be a list of arguments"),
    ],
)
def test_rows_without_tests_that_can_be_run(prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program_tests(prompt)


def test_where_nothing_contains_programs_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passk_fast.tasks.code.unavailable_reason", lambda: "namespaces: none")
    want = (
        r"'code' executes programs, and nothing can contain them .*: namespaces: none\. See docs/"
    )
    with pytest.raises(SandboxError, match=want):
        Code().check_prompt(_prompt(tests=["assert f(1)"]))


@pytest.mark.parametrize("status", set(Status) - {Status.JUDGED})
def test_a_lost_sandbox_is_no_reward(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        def run(self, program: object) -> Verdict:
            return Verdict(status, 0.0)

    monkeypatch.setattr("passk_fast.tasks.code.shared_sandbox", lambda **settings: Lost())
    with pytest.raises(VerifierFailed, match=f"gave no verdict: {status.name.lower()}"):
        Code().verify(_prompt(tests=["assert f(1)"]), "f = bool")
