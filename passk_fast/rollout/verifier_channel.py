"""Messages between the trainer and a verifier's process, in fixed binary forms.

A job is a length and JSON, from the trainer. An answer is a status, a count, and as many float64 or
bytes of text: nothing in it is unpickled, and a false count cannot make the trainer allocate more
than LONGEST. Every wait of the trainer's has a deadline, whatever the process has sent by then.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1 << 16
"""Bytes of a failure's text."""
_PART = 500
"""Characters of each part of it that are kept; as JSON one takes 12 bytes at most."""
_HEAD = struct.Struct("<BI")
_JOB = struct.Struct("<Q")
_REWARDS, _FAILURE = 0, 1


@dataclass(frozen=True)
class Failure:
    """The arguments of a `VerifierError`."""

    kind: str
    text: str
    where: str


class BadAnswerError(Exception):
    """The bytes are no answer."""


def rewards(values: Sequence[float]) -> bytes:
    """The answer with the rewards of a job."""
    return _HEAD.pack(_REWARDS, len(values)) + struct.pack(f"<{len(values)}d", *values)


def failure(kind: str, text: str, where: str) -> bytes:
    """The answer for a job that failed; each part is cut to what fits."""
    parts = [part[:_PART] for part in (kind, text, where)]
    body = json.dumps(parts).encode()
    return _HEAD.pack(_FAILURE, len(body)) + body


def send_job(own: socket.socket, job: bytes, timeout_s: float) -> None:
    """Send a job to the process; TimeoutError or, where it is gone, OSError."""
    own.settimeout(timeout_s)
    own.sendall(_JOB.pack(len(job)) + job)


def receive_job(own: socket.socket) -> bytes:
    """The next job; EOFError when the trainer has closed the socket."""
    (size,) = _JOB.unpack(_exactly(own, _JOB.size, None))
    return _exactly(own, size, None)


def receive(own: socket.socket, count: int, deadline: float) -> list[float] | Failure:
    """The answer to a job of `count` responses: its rewards, or why there are none.

    `deadline` is of time.monotonic. Raises TimeoutError, EOFError or OSError where the process is
    gone, and BadAnswerError for anything but an answer to such a job.
    """
    status, size = _HEAD.unpack(_exactly(own, _HEAD.size, deadline))
    if status == _REWARDS and size == count:
        body = _exactly(own, 8 * count, deadline)
        return list(struct.unpack(f"<{count}d", body))
    if status == _FAILURE and size <= LONGEST:
        try:
            parts = json.loads(_exactly(own, size, deadline))
        except ValueError:
            raise BadAnswerError from None
        if isinstance(parts, list) and len(parts) == 3:
            return Failure(*(str(part) for part in parts))
    raise BadAnswerError


def _exactly(own: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            own.settimeout(max(1e-3, deadline - time.monotonic()))
        part = own.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)
