"""Programs under test: how one is started inside a sandbox, and whether its test passed.

A test of the output is judged outside of the program, which cannot forge it. A test by statements
runs in the program's own interpreter: one that sets out to deceive it can (docs/sandbox.md).
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from passk_fast.tasks.sandbox.protocol import SCRATCH, ProgramTest

_PROGRAM, _CHECK, _RUNNER = "program.py", "check.py", "runner.py"
_RUN_CHECK = f"""\
def run():
    import os
    write, leave = os.write, os._exit
    mark = os.read(3, 64)
    os.ftruncate(3, 0)
    os.lseek(3, 0, os.SEEK_SET)
    texts = []
    for name in ("{_PROGRAM}", "{_CHECK}"):
        with open(name, "rb") as file:
            texts.append(file.read())
        os.unlink(name)
    namespace = {{"__name__": "program"}}
    for name, text in zip(("{_PROGRAM}", "{_CHECK}"), texts):
        exec(compile(text, name, "exec"), namespace)
    write(3, mark[::-1])
    leave(0)

run()
"""


def files_of(source: str, test: ProgramTest) -> dict[str, bytes]:
    """The files that a test needs in its working folder."""
    files = {_PROGRAM: source.encode(errors="surrogatepass")}
    if test.stdout is None:
        files[_CHECK] = test.code.encode(errors="surrogatepass")
        files[_RUNNER] = _RUN_CHECK.encode()
    return files


def execute(files: dict[str, bytes], test: ProgramTest) -> NoReturn:
    """Become the program: a new Python, so that nothing of this process is left to be read."""
    os.chdir(SCRATCH)
    for name, content in files.items():
        with open(name, "wb") as file:
            file.write(content)
    script = _PROGRAM if test.stdout is not None else _RUNNER
    environment = {"PATH": "/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8"}
    os.execve(sys.executable, [sys.executable, "-I", "-B", script], environment)


def passed(mark: bytes) -> bytes:
    """What the runner reports for a test whose statements all ran."""
    return mark[::-1]


def same_output(printed: bytes, wanted: str) -> bool:
    """Equal line by line, without spaces at the ends of lines and without outer empty lines."""
    return _lines(printed) == _lines(wanted.encode(errors="surrogatepass"))


def _lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.strip().split(b"\n")]
