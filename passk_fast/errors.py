"""What can go wrong, and the exit code that says so to a scheduler or a script."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `passk-fast`; documented in docs/operations.md."""

    DONE = 0
    CRASHED = 1
    BAD_CONFIG = 2
    BAD_DATA = 10
    PREEMPTED = 16
    LOST_RANK = 17
    DISK = 20
    DIVERGED = 30
    NO_SIGNAL = 31


_LONGEST = 1200
"""Characters of a message that are shown: one paragraph, whatever a value holds that it quotes."""


def shown(text: str) -> str:
    """A message as it is shown: of a long one beginning and end."""
    if len(text) <= _LONGEST:
        return text
    left = _LONGEST // 2
    return f"{text[:left]} [{len(text) - 2 * left} characters left out] {text[-left:]}"


class PasskError(Exception):
    """An error whose message is meant for the user: one paragraph, no traceback."""

    exit_code = ExitCode.BAD_CONFIG

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(PasskError):
    """The configuration, or a model folder that it names, cannot be used."""


class DataError(PasskError):
    """A data file is missing or malformed; the message starts with `file:line`."""

    exit_code = ExitCode.BAD_DATA


class DiskError(PasskError):
    """A folder cannot be written, or its file system is full."""

    exit_code = ExitCode.DISK


class DivergedError(PasskError):
    """Numerical failure: non-finite gradients or weights, or rollout and trainer disagree."""

    exit_code = ExitCode.DIVERGED


class NoSignalError(PasskError):
    """Group after group carries no gradient: there is nothing to train on."""

    exit_code = ExitCode.NO_SIGNAL


class LostRankError(PasskError):
    """A rank died, or a wait ran past its deadline."""

    exit_code = ExitCode.LOST_RANK
