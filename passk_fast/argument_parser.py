"""A parser of command lines whose errors are ours."""

from __future__ import annotations

import argparse
from typing import NoReturn

from passk_fast.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, of one paragraph, for a bad command line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ConfigError(f"command line: {message}. `{self.prog} --help` lists the options.")
