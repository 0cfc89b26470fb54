"""Options that the commands take out of their arguments before the configuration sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passk_fast.errors import ConfigError

if TYPE_CHECKING:
    from passk_fast.run.start import Start


def take(arguments: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the arguments and return the value.

    ConfigError where the value is missing.
    """
    for i, argument in enumerate(arguments):
        if argument == name:
            if i + 1 == len(arguments):
                raise ConfigError(f"command line: {name} needs a value.")
            del arguments[i]
            return arguments.pop(i)
        if argument.startswith(name + "="):
            return arguments.pop(i).partition("=")[2]
    return None


def take_start(arguments: list[str]) -> Start:
    """Remove `--resume STEP` and `--fresh` from the arguments of `train`, and return what they say.

    ConfigError where the step is no number, or both are given.
    """
    from passk_fast.run.start import Start

    step, fresh = take(arguments, "--resume"), "--fresh" in arguments
    arguments[:] = [argument for argument in arguments if argument != "--fresh"]
    if step is not None and fresh:
        raise ConfigError("command line: --resume and --fresh exclude each other; take one.")
    return Start(step=None if step is None else positive(step, "--resume"), fresh=fresh)


def config_file(arguments: list[str], command: str) -> tuple[str, list[str]]:
    """(configuration file, overrides); ConfigError with the usage where the file is missing."""
    if not arguments or arguments[0].startswith("-"):
        got = f", got {arguments[0]!r}" if arguments else ""
        raise ConfigError(
            f"usage: passk-fast {command} CONFIG [--key value ...]: the first argument must be the "
            f"path of a TOML file{got}."
        )
    return arguments[0], arguments[1:]


def positive(text: str, name: str, most: int = 10**9) -> int:
    """The value of an option that counts something; ConfigError unless it is in 1..most."""
    number = whole(text)
    if number is None or number < 1:
        raise ConfigError(f"command line: {name} must be a positive number, got {text!r}.")
    if number > most:
        raise ConfigError(f"command line: {name} must be at most {most}, got {text}.")
    return number


def whole(text: str) -> int | None:
    """Decimal digits as a number; None for anything else: signs, superscripts, 5,000 digits."""
    digits = text.isascii() and text.isdigit() and len(text) <= 18
    return int(text) if digits else None
