"""Runs verifiers that execute what a model wrote, where it can harm nothing and learn nothing.

A `Sandbox` is a Python process in namespaces of its own, on a small read-only file system without a
network. Each verdict is a child of that process with resource limits and a deadline, and gives back
one status byte and one float64. What is contained, and what is not: docs/sandbox.md.
"""

from passk_fast.tasks.sandbox.client import (
    Sandbox,
    SandboxError,
    Verdict,
    VerifierFailed,
    shared_sandbox,
    unavailable_reason,
)
from passk_fast.tasks.sandbox.protocol import Containment, Limits, Program, ProgramTest, Status

__all__ = [
    "Containment",
    "Limits",
    "Program",
    "ProgramTest",
    "Sandbox",
    "SandboxError",
    "Status",
    "Verdict",
    "VerifierFailed",
    "shared_sandbox",
    "unavailable_reason",
]
