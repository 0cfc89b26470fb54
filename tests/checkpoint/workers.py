"""What the checkpoint tests run on ranks."""

from __future__ import annotations

import errno
import os
from typing import Any
from unittest import mock

from passk_fast.errors import DiskError
from tests.actor.workers import train_steps


def error_on_a_full_disk(kind: str, folder: str, parallel: dict[str, Any], save: str) -> str:
    """What writing a checkpoint says where the disk is full when a file is flushed."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", full):
        try:
            train_steps(kind, folder, parallel, 1, save=save)
        except DiskError as error:
            return str(error)
    return ""
