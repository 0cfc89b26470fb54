"""Calls a verifier and makes one status and one float of whatever it does."""

from __future__ import annotations

import importlib
import math
import numbers

from passk_fast.tasks.sandbox.protocol import Call, Status


def judged(call: Call) -> tuple[Status, float]:
    """(status, reward) of a call; nothing that the verifier raises comes through."""
    try:
        module, _, name = call.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        return _reward(function(*call.arguments))
    except MemoryError:
        return Status.OUT_OF_MEMORY, 0.0
    except RecursionError:
        return Status.TOO_DEEP, 0.0
    except (SystemExit, KeyboardInterrupt):
        return Status.LEFT, 0.0
    except BaseException:
        return Status.RAISED, 0.0


def _reward(value: object) -> tuple[Status, float]:
    if isinstance(value, numbers.Real):
        reward = float(value)
        if math.isfinite(reward) and 0.0 <= reward <= 1.0:
            return Status.JUDGED, reward
    return Status.NOT_A_REWARD, 0.0
