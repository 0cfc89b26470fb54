"""The compiled extension, and what is said where it has not been built."""

from __future__ import annotations

import subprocess
import sys

from passk_fast import native


def test_what_it_offers() -> None:
    assert set(native.__all__) == {"plan_micro_batches", "plan_reshard"}
    assert all(callable(getattr(native, name)) for name in native.__all__)


def test_the_remedy_is_named_where_it_is_missing() -> None:
    program = "import sys; sys.modules['passk_fast._native'] = None; import passk_fast.native"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: passk_fast._native cannot be imported")
    assert "make setup" in last
    assert "C++20 compiler" in last
