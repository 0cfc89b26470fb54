"""Hostile verifiers: contained, within their deadline, and without a trace for the next one."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passk_fast.tasks.sandbox import (
    Containment,
    Limits,
    Program,
    ProgramTest,
    Sandbox,
    SandboxError,
    Status,
    Verdict,
    VerifierFailed,
    unavailable_reason,
)
from tests.tasks import payloads

LIMITS = Limits(wall_s=2.0, cpu_s=2, memory_mib=256, file_mib=4)
HANG_S = 60.0
"""Seconds that only a hang can exceed, on however busy a machine."""
contained = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no namespaces here: {unavailable_reason()}"
)


def _kinds() -> list[Containment]:
    """What can be tried here; limits alone where nothing contains."""
    if unavailable_reason() is not None:
        return [Containment.LIMITS]
    installed = [Containment.BUBBLEWRAP] if shutil.which("bwrap") else []
    return [Containment.NAMESPACES, *installed]


@pytest.fixture(scope="module", params=_kinds())
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    preload = ("tests.tasks.payloads",)
    kind: Containment = request.param
    with Sandbox(limits=LIMITS, preload=preload, executes_code=False, containment=kind) as made:
        yield made


def _still_works(sandbox: Sandbox) -> bool:
    return sandbox.call(payloads.constant, 0.25) == Verdict(Status.JUDGED, 0.25)


@pytest.mark.parametrize("value", [0, 1, 0.5, True, 1.0, 5e-324])
def test_rewards_come_back(sandbox: Sandbox, value: float) -> None:
    assert sandbox.judge(payloads.constant, value) == value


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.1, 1.0000001, 2, None, "1", [1.0], 1j, b"1"]
)
def test_what_is_no_reward(sandbox: Sandbox, value: object) -> None:
    assert sandbox.call(payloads.constant, value) == Verdict(Status.NOT_A_REWARD, 0.0)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("1/0", Status.RAISED),
        ("undefined", Status.RAISED),
        ("exit()", Status.LEFT),
        ("__import__('sys').exit(0)", Status.LEFT),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", Status.LEFT),
        ("(_ for _ in ()).throw(SystemExit(0))", Status.LEFT),
        ("(_ for _ in ()).throw(GeneratorExit)", Status.RAISED),
        ("(_ for _ in ()).throw(RecursionError)", Status.TOO_DEEP),
        ("__import__('os')._exit(0)", Status.DIED),
        ("__import__('os').abort()", Status.DIED),
        ("__import__('os').kill(__import__('os').getpid(), 9)", Status.DIED),
        ("all(1 for x in iter(int, 1))", Status.TIMED_OUT),
        ("bytearray(10**10)", Status.OUT_OF_MEMORY),
        ("__import__('time').sleep(1000)", Status.TIMED_OUT),
        ("'\\ud800'", Status.NOT_A_REWARD),
        ("(" * 500, Status.RAISED),
    ],
)
def test_hostile_expressions(sandbox: Sandbox, text: str, status: Status) -> None:
    start = time.monotonic()
    assert sandbox.call(payloads.evaluate, text) == Verdict(status, 0.0)
    assert time.monotonic() - start < HANG_S
    assert _still_works(sandbox)


def test_numbers_without_end(sandbox: Sandbox) -> None:
    """Which limit is met first depends on the machine."""
    verdict = sandbox.call(payloads.evaluate, "9**9**9**9")
    assert verdict.status in (Status.TIMED_OUT, Status.OUT_OF_MEMORY)
    assert verdict.reward == 0.0


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.allocate, 16) == 1.0
    assert sandbox.call(payloads.allocate, 2048).status is Status.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("payload", "statuses"),
    [
        (payloads.recurse, {Status.TOO_DEEP}),
        (payloads.crash, {Status.DIED}),
        (payloads.flood, {Status.TIMED_OUT}),
        (payloads.forge, {Status.DIED}),
    ],
)
def test_hostile_functions(
    sandbox: Sandbox, payload: Callable[[], float], statuses: set[Status]
) -> None:
    assert sandbox.call(payload).status in statuses
    assert _still_works(sandbox)


def test_descriptors_are_bounded(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.open_many, 8) == 1.0
    assert sandbox.call(payloads.open_many, 1000).status is Status.RAISED


def test_no_secrets_of_the_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert sandbox.judge(payloads.environment_size) == 0.0


def test_a_failed_verdict_raises_with_its_kind(sandbox: Sandbox) -> None:
    with pytest.raises(VerifierFailed, match="evaluate: no reward: not a reward"):
        sandbox.judge(payloads.evaluate, "7")


def test_only_functions_of_modules(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="must be a function that stands in a module"):
        sandbox.call(lambda: 1.0)


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"Limits\.wall_s must be above 0, got 0"):
        Limits(wall_s=0)


@contained
def test_forks_are_refused(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.fork_bomb) == 1.0
    assert sandbox.call(payloads.run_a_command).status is Status.RAISED


@contained
def test_allowed_processes_end_with_their_verdict() -> None:
    preload = ("tests.tasks.payloads",)
    limits = Limits(wall_s=5.0, processes=4)
    with Sandbox(limits=limits, preload=preload) as sandbox:
        assert 0.8 < sandbox.judge(payloads.fork_bomb) < 1.0
        assert sandbox.judge(payloads.run_a_command) == 1.0
        assert sandbox.judge(payloads.leave_a_process_behind) == 1.0
        assert sandbox.judge(payloads.finds_nothing_left) == 1.0
        time.sleep(0.6)
        assert sandbox.judge(payloads.finds_nothing_left) == 1.0


@contained
def test_threads_are_bounded(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.thread_bomb) == 1.0


@contained
def test_files_of_a_verdict_are_gone_before_the_next(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.leave_a_file_behind) == 1.0
    assert sandbox.judge(payloads.finds_nothing_left) == 1.0
    assert not Path("/tmp/left").exists()


@contained
def test_room_for_files_is_bounded(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.fill_tmp, 1) == 1.0
    assert sandbox.call(payloads.fill_tmp, 3).status is Status.RAISED


@contained
def test_signals_do_not_leave_the_sandbox(sandbox: Sandbox) -> None:
    sandbox.call(payloads.kill_everything)
    assert _still_works(sandbox)


@contained
def test_nothing_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    assert sandbox.judge(payloads.writable_places) == 0.0
    for target in (tmp_path / "a", Path("/etc/passwd"), Path(__file__)):
        assert sandbox.call(payloads.overwrite, str(target)).status is Status.RAISED
    assert not (tmp_path / "a").exists()


@contained
def test_only_what_python_needs_can_be_seen(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{}")
    hidden = [str(tmp_path / "answers.jsonl"), "/etc/passwd", "/etc/shadow", "/run", "/sys"]
    hidden += [os.path.abspath("pyproject.toml"), os.path.abspath(".git"), "/home"]
    assert [path for path in hidden if sandbox.judge(payloads.exists, path)] == []
    assert sandbox.judge(payloads.exists, os.__file__) == 1.0


@contained
def test_no_network_not_even_to_this_machine(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert sandbox.call(payloads.connect, "127.0.0.1", port).status is Status.RAISED
        with pytest.raises(TimeoutError):
            server.accept()


@contained
def test_no_new_privileges(sandbox: Sandbox) -> None:
    assert sandbox.judge(payloads.new_privileges) == 0.0


@contained
def test_code_is_executed_inside_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    sandbox.call(payloads.execute, f"import os; os.system('touch {target}'); open('{target}', 'w')")
    assert not target.exists()


def test_a_program_needs_tests(sandbox: Sandbox) -> None:
    if sandbox.containment != "limits":
        with pytest.raises(ValueError, match="at least one test"):
            sandbox.run(Program(source="", tests=()))
    else:
        with pytest.raises(SandboxError, match="executes_code"):
            sandbox.run(Program(source="", tests=(ProgramTest(code="1"),)))


def test_limits_alone_do_not_contain_code() -> None:
    with pytest.raises(SandboxError, match="limits alone do not contain"):
        Sandbox(containment=Containment.LIMITS)
    with Sandbox(executes_code=False, containment=Containment.LIMITS) as sandbox:
        assert sandbox.judge(math.cos, 0.0) == 1.0
        with pytest.raises(SandboxError, match="programs run only in a sandbox"):
            sandbox.run(Program(source="", tests=(ProgramTest(code="1"),)))


def test_two_processes_judge_at_once(tmp_path: Path) -> None:
    """A verdict that waits in one sandbox does not hold up another."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rewards: list[float] = []
    with _without_namespaces() as one, _without_namespaces() as other:
        waiting = threading.Thread(
            target=lambda: rewards.append(one.judge(payloads.wait_for_a_writer, str(pipe)))
        )
        waiting.start()
        assert other.judge(payloads.constant, 1.0) == 1.0
        assert rewards == []
        pipe.write_text("0.5")
        waiting.join()
    assert rewards == [0.5]


def _without_namespaces() -> Sandbox:
    """One that sees the test's own files, with time enough for any machine."""
    limits = Limits(wall_s=HANG_S, cpu_s=60)
    preload = ("tests.tasks.payloads",)
    kind = Containment.LIMITS
    return Sandbox(limits=limits, preload=preload, executes_code=False, containment=kind)


WITHOUT_NAMESPACES = """
import math, os
os.environ["PATH"] = ""
from passk_fast.data.types import Prompt
from passk_fast.tasks.code import Code
from passk_fast.tasks.sandbox import Sandbox, SandboxError, unavailable_reason
print(unavailable_reason())
for attempt in (Sandbox, lambda: Code().check_prompt(
    Prompt(id="0", text="?", answer='["assert 1"]', task="code")
)):
    try:
        attempt()
    except SandboxError as error:
        print(error)
with Sandbox(executes_code=False) as sandbox:
    print(sandbox.containment, sandbox.judge(math.cos, 0.0))
"""


@contained
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs the program unshare")
def test_where_namespaces_are_off_code_is_refused_with_the_reason() -> None:
    turn_off = "echo 0 > /proc/sys/user/max_user_namespaces"
    ended = subprocess.run(
        [
            "unshare",
            "-Ur",
            "sh",
            "-c",
            f'{turn_off} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            WITHOUT_NAMESPACES,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    reason, sandbox, code, plain = ended.stdout.splitlines()
    assert reason == "namespaces: unshare: No space left on device; bubblewrap: not installed"
    assert sandbox.startswith("verifiers that execute what a model wrote are refused")
    assert reason in sandbox
    assert "install bubblewrap" in sandbox
    assert code.startswith("the task 'code' executes programs")
    assert reason in code
    assert plain == "limits 1.0"


@contained
def test_a_lost_sandbox_is_started_again() -> None:
    with Sandbox(limits=LIMITS) as sandbox:
        assert sandbox.judge(math.cos, 0.0) == 1.0
        sandbox.close()
        assert sandbox.judge(math.cos, 0.0) == 1.0


def test_what_is_prepared_is_there_in_later_verdicts(sandbox: Sandbox) -> None:
    apart = {sandbox.judge(payloads.remembered) for _ in range(3)}
    sandbox.prepare(payloads.remembered)
    shared = {sandbox.judge(payloads.remembered) for _ in range(3)}
    assert (len(apart), len(shared)) == (3, 1)
    with pytest.raises(VerifierFailed, match="cannot be prepared"):
        sandbox.prepare(payloads.evaluate, "1/0")
    assert sandbox.judge(payloads.remembered) in shared
