"""Hugging Face folders in and out: streamed from sharded safetensors, one tensor at a time."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from passk_fast.errors import ConfigError, DiskError
from passk_fast.weights.folder_check import INDEX

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that a folder can be written in, by their names in config.json."""


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a command's --dtype; ConfigError for another name than those of DTYPES."""
    if name not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}.")
    return DTYPES[name]


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
        index = self.folder / INDEX
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


def check_new(target: Path) -> None:
    """ConfigError unless `target` can become a new folder: absent, or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder; name a new one.")


@contextmanager
def whole_or_absent(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the end and is removed after an error.

    Raises:
        ConfigError: see `check_new`.
        DiskError: the file system is full, read-only, or not the user's.
    """
    check_new(target)
    staging = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        yield staging
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DiskError(f"{target}: cannot be written: {reason}.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_folder(
    tensors: Iterable[tuple[str, Tensor]],
    out: Path,
    *,
    like: Path,
    dtype: torch.dtype,
    max_file_bytes: int = 4 << 30,
) -> None:
    """Write named tensors as sharded safetensors, with `like`'s config and tokenizer files.

    config.json gets the dtype of the weights. Files have the modes of any new file. ConfigError for
    a tensor with a value that is not finite in `dtype`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in like.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.name != INDEX:
            shutil.copyfile(file, out / file.name)
    _name_dtype(out / "config.json", dtype)
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
        if not bool(value.isfinite().all()):
            raise ConfigError(f"{name} holds values that are not finite in {dtype}.")
        size = value.numel() * value.element_size()
        if pending and pending_bytes + size > max_file_bytes:
            flush()
        pending[name] = value
        pending_bytes += size
        total += size
    flush()
    _name_parts(out, parts, total)
    mode = stat.S_IMODE((out / "config.json").stat().st_mode)
    for file in out.glob("*.safetensors"):
        file.chmod(mode)  # written by safetensors for the owner alone


def _name_dtype(file: Path, dtype: torch.dtype) -> None:
    """Say in config.json which dtype the weights have: loaders take it from there, not from them.

    Transformers reads `torch_dtype` in every version and writes `dtype` since 4.56.
    """
    fields = json.loads(file.read_text(encoding="utf-8"))
    named = {"dtype", "torch_dtype"} & fields.keys() or {"torch_dtype"}
    fields |= dict.fromkeys(sorted(named), str(dtype).removeprefix("torch."))
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _name_parts(out: Path, parts: list[list[str]], total: int) -> None:
    if len(parts) == 1:
        (out / "part-00000.tmp").rename(out / "model.safetensors")
        (out / INDEX).unlink(missing_ok=True)
        return
    weight_map = {}
    for i, names in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        (out / f"part-{i:05d}.tmp").rename(out / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index, indent=2))
