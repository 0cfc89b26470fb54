"""Hugging Face folders in and out: streamed from sharded safetensors, one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from passk_fast.errors import ConfigError

_INDEX = "model.safetensors.index.json"


class _Slice(Protocol):
    """A tensor in an open safetensors file, of which parts can be read."""

    def get_shape(self) -> list[int]: ...
    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor: ...


class _File(Protocol):
    """An open safetensors file."""

    def get_tensor(self, name: str) -> Tensor: ...
    def get_slice(self, name: str) -> _Slice: ...


class HFReader:
    """Reads single tensors of a model folder by name; only what is asked for is loaded."""

    def __init__(self, folder: str | Path) -> None:
        """ConfigError when the folder holds no readable safetensors."""
        self.folder = Path(folder)
        index = self.folder / _INDEX
        self._files: dict[str, str] = {}
        self._handles: dict[str, _File] = {}
        if index.is_file():
            self._files = json.loads(index.read_text())["weight_map"]
            return
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"model.path: {self.folder} holds no *.safetensors file.")
        for file in files:
            try:
                with safe_open(file, framework="pt") as handle:
                    self._files.update(dict.fromkeys(handle.keys(), file.name))
            except SafetensorError as error:
                raise ConfigError(
                    f"model.path: {file} is not a safetensors file: {error}"
                ) from None

    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._files)

    def read(self, name: str) -> Tensor:
        """One full tensor; ConfigError when the folder has no tensor of this name."""
        return self._handle(name).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it; ConfigError as for `read`."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def read_part(self, name: str, r0: int, r1: int, c0: int, c1: int) -> Tensor:
        """Rows r0..r1 and columns c0..c1 as a matrix; a vector has one column."""
        part = self._handle(name).get_slice(name)
        return part[r0:r1, c0:c1] if len(part.get_shape()) > 1 else part[r0:r1][:, None]

    def _handle(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            raise ConfigError(f"model.path: {self.folder} has no tensor {name!r}.")
        if file not in self._handles:
            self._handles[file] = safe_open(self.folder / file, framework="pt")
        return self._handles[file]


def write_folder(
    tensors: Iterable[tuple[str, Tensor]],
    out: Path,
    *,
    like: Path,
    dtype: torch.dtype,
    max_file_bytes: int = 4 << 30,
) -> None:
    """Write named tensors as sharded safetensors, with `like`'s config and tokenizer files."""
    out.mkdir(parents=True, exist_ok=True)
    for file in like.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.name != _INDEX:
            shutil.copy2(file, out / file.name)
    pending: dict[str, Tensor] = {}
    pending_bytes = total = 0
    parts: list[list[str]] = []

    def flush() -> None:
        nonlocal pending, pending_bytes
        save_file(pending, out / f"part-{len(parts):05d}.tmp", metadata={"format": "pt"})
        parts.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in tensors:
        value = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        size = value.numel() * value.element_size()
        if pending and pending_bytes + size > max_file_bytes:
            flush()
        pending[name] = value
        pending_bytes += size
        total += size
    flush()
    _name_parts(out, parts, total)


def _name_parts(out: Path, parts: list[list[str]], total: int) -> None:
    if len(parts) == 1:
        (out / "part-00000.tmp").rename(out / "model.safetensors")
        (out / _INDEX).unlink(missing_ok=True)
        return
    weight_map = {}
    for i, names in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        (out / f"part-{i:05d}.tmp").rename(out / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / _INDEX).write_text(json.dumps(index, indent=2))
