"""What seals a checkpoint folder: a manifest with size and SHA-256 of each file, and its digest.

Digests guard against damage, not against someone who can also rewrite the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from passk_fast.errors import ExitCode, PasskError

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
FORMAT = 1

_HASH_THREADS = 8
_STEP_NAME = re.compile(r"step_(\d{8,})")
_Entry = tuple[int, str]
"""Size in bytes and SHA-256 of a file."""


class CorruptCheckpointError(PasskError):
    """A checkpoint's files are not those that were saved; the message names the first bad one."""

    exit_code = ExitCode.BAD_DATA


def checkpoint_name(step: int) -> str:
    """Folder name of a step. Example: 20 -> "step_00000020"."""
    if step < 0:
        raise ValueError(f"a checkpoint's step must be 0 or more, got {step}.")
    return f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder, by its name; None for another folder."""
    match = _STEP_NAME.fullmatch(folder.name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == folder.name else None


def sync(path: Path) -> None:
    """Flush a file or a folder to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a file and flush it to the device."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relative_files(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest's two, as sorted POSIX paths.

    Raises:
        CorruptCheckpointError: something there is neither a folder nor a regular file.
    """
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CorruptCheckpointError(f"{path} is not a regular file.")
        found += [Path(parent, name).relative_to(folder).as_posix() for name in files]
    return sorted(set(found) - {MANIFEST, MANIFEST_DIGEST})


def _raise(error: OSError) -> None:
    raise error


def _digests(folder: Path, names: list[str]) -> list[str]:
    """SHA-256 of each file; hashing leaves the interpreter lock, so threads share the work."""
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return list(pool.map(lambda name: _sha256(folder / name), names))


def seal(folder: Path, step: int) -> None:
    """Sync every file of `folder`, write the manifest and its digest, sync those too."""
    names = _relative_files(folder)
    assert names, f"checkpoint {folder} holds no file"
    for name in names:
        sync(folder / name)
    files = {
        name: {"sha256": digest, "size": (folder / name).stat().st_size}
        for name, digest in zip(names, _digests(folder, names), strict=True)
    }
    manifest = {"files": files, "format": FORMAT, "step": step}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_synced(folder / MANIFEST, text)
    write_synced(folder / MANIFEST_DIGEST, _digest_line(text.encode()))
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def _digest_line(manifest: bytes) -> str:
    """The one allowed content of manifest.sha256, which `sha256sum -c` also reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise CorruptCheckpointError(f"{path} is missing.")
    return path.read_bytes()


def _load_manifest(folder: Path) -> dict[str, _Entry]:
    """The manifest's file table, once its digest, format and step are right."""
    raw = _read(folder / MANIFEST)
    if _read(folder / MANIFEST_DIGEST) != _digest_line(raw).encode():
        raise CorruptCheckpointError(
            f"{folder / MANIFEST} does not match its digest in {MANIFEST_DIGEST}."
        )
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError):
        raise CorruptCheckpointError(f"{folder / MANIFEST} is not JSON.") from None
    if not isinstance(manifest, dict) or manifest.keys() != {"files", "format", "step"}:
        raise CorruptCheckpointError(
            f"{folder / MANIFEST} is not an object with files, format and step."
        )
    if manifest["format"] != FORMAT:
        raise CorruptCheckpointError(
            f"{folder / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}."
        )
    step = manifest["step"]
    if type(step) is not int or step < 0 or checkpoint_name(step) != folder.name:
        raise CorruptCheckpointError(f"{folder / MANIFEST} is of step {step}.")
    return _file_table(manifest["files"], folder / MANIFEST)


def _file_table(files: object, path: Path) -> dict[str, _Entry]:
    """What the manifest at `path` says of each file: its size in bytes and its SHA-256."""
    if not isinstance(files, dict):
        raise CorruptCheckpointError(f"{path}: its files are no table.")
    table = {}
    for name, entry in files.items():
        size, digest = (
            (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else ("", "")
        )
        if type(size) is not int or not isinstance(digest, str):
            raise CorruptCheckpointError(f"{path} has no size and SHA-256 of {name}.")
        table[name] = (size, digest)
    return table


def verify_checkpoint(folder: Path, *, digests: bool = True) -> None:
    """Check that `folder` holds exactly the files that were saved, byte for byte.

    Without `digests` only their names and sizes, in no time.

    Raises:
        CorruptCheckpointError: names the first file that is missing, extra, of another size, of
            another digest, or unreadable.
    """
    try:
        _verify(folder, digests)
    except OSError as error:
        raise CorruptCheckpointError(
            f"{error.filename or folder} cannot be read: {error.strerror}."
        ) from error


def _verify(folder: Path, digests: bool) -> None:
    files = _load_manifest(folder)
    present = _relative_files(folder)
    for name in sorted(files.keys() - set(present)):
        raise CorruptCheckpointError(f"{folder / name} is missing.")
    for name in sorted(set(present) - files.keys()):
        raise CorruptCheckpointError(f"{folder / name} is not in the manifest.")
    for name in present:
        size = (folder / name).stat().st_size
        if size != files[name][0]:
            raise CorruptCheckpointError(
                f"{folder / name} has {size} bytes, saved were {files[name][0]}."
            )
    checked = present if digests else []
    for name, digest in zip(checked, _digests(folder, checked), strict=True):
        if digest != files[name][1]:
            raise CorruptCheckpointError(f"{folder / name} does not match its SHA-256.")
