"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

from tests.shapes import check_shapes

check_shapes()  # before anything imports passk_fast

# A busy machine is no failure: pytest's own time-out ends a test that hangs.
settings.register_profile("passk_fast", deadline=None)
settings.load_profile("passk_fast")
