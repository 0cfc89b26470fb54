"""A GGUF file as typed values: what is missing or of a wrong type is a ConfigError."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from passk_fast.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from jaxtyping import Float32


class GgufFile:
    """An open file. Tensors are mapped, and computed one at a time when they are read."""

    def __init__(self, path: str | Path) -> None:
        """ConfigError where the package gguf is missing, or the file is no readable GGUF."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: no such file.")
        if importlib.util.find_spec("gguf") is None:
            raise ConfigError(
                f"{self.path}: reading it needs the package gguf, which is not installed: "
                "pip install --no-deps -r requirements/real.txt."
            )
        self._reader = self._open()
        self._tensors: dict[str, ReaderTensor] = {t.name: t for t in self._reader.tensors}

    def _open(self) -> GGUFReader:
        from gguf import GGUFReader

        try:
            return GGUFReader(self.path)
        except Exception as error:  # a damaged file fails wherever the reader happens to be
            raise ConfigError(
                f"{self.path}: not a whole GGUF file ({type(error).__name__}: {error})."
            ) from None

    def fields(self) -> list[str]:
        """Names of all metadata."""
        return list(self._reader.fields)

    def get(self, name: str) -> object:
        """One value; None where the file has no such field. Float32 is read as its decimal."""
        found = self._reader.fields.get(name)
        if found is None:
            return None
        value: object = found.contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _fail(self, name: str, wanted: str) -> ConfigError:
        value = self.get(name)
        got = "is missing" if value is None else f"is {value!r:.60}"
        return ConfigError(f"{self.path}: field {name} {got}; it must be {wanted}.")

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of 0 or more; ConfigError for anything else."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._fail(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; ConfigError for anything else."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self._fail(name, "a positive number")
        return float(value)

    def text(self, name: str) -> str:
        """A string; ConfigError for anything else."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self._fail(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; ConfigError for anything else."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._fail(name, "a list of texts")
        return value

    def counts(self, name: str) -> list[int]:
        """A list of whole numbers; ConfigError for anything else."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise self._fail(name, "a list of whole numbers")
        return value

    def tensor_names(self) -> Iterator[str]:
        """Names of all tensors, in the file's order."""
        yield from self._tensors

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape in torch's order, [rows, columns]; ConfigError where there is no such tensor."""
        return tuple(int(n) for n in reversed(self._tensor(name).shape))

    def tensor(self, name: str) -> Float32[np.ndarray, " ..."]:
        """One tensor's values, computed from whatever they are quantised to.

        ConfigError where there is no such tensor, or gguf cannot compute its quantisation.
        """
        from gguf import dequantize

        found = self._tensor(name)
        try:
            values = dequantize(found.data, found.tensor_type)
        except NotImplementedError:
            raise ConfigError(
                f"{self.path}: tensor {name} has the type {found.tensor_type.name}, which the "
                "package gguf cannot read; take a file of another quantisation."
            ) from None
        return np.asarray(values, dtype=np.float32).reshape(self.tensor_shape(name))

    def _tensor(self, name: str) -> ReaderTensor:
        if name not in self._tensors:
            raise ConfigError(f"{self.path}: it has no tensor {name}.")
        return self._tensors[name]
