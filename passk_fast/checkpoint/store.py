"""The checkpoint store: folders, files and digests; it knows nothing of Megatron or torch.

A checkpoint `step_00000020/` is complete or absent: files are written to a staging folder, hashed
into a manifest, synced, and renamed. Nothing in one is parsed before every digest has matched.
Digests guard against damage, not against someone who can also rewrite the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from passk_fast.errors import DiskError, ExitCode, PasskError

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
LATEST = "LATEST"
FORMAT = 1

_STEP_NAME = re.compile(r"step_(\d{8,})")
_STAGING, _REPLACED, _TRASH, _ABANDONED = ".staging-", ".replaced-", ".trash-", "abandoned-"
_DISK_ERRNOS = {
    errno.ENOSPC: "the file system is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the device reports an input/output error",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}
_HASH_THREADS = 8
_GIB = 2**30

logger = logging.getLogger(__name__)


class CorruptCheckpointError(PasskError):
    """A checkpoint's files are not those that were saved; the message names the first bad one."""

    exit_code = ExitCode.BAD_DATA


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or failing disk under `path` into DiskError; other errors pass."""
    try:
        yield
    except OSError as error:
        reason = _DISK_ERRNOS.get(error.errno or 0)
        if reason is None:
            raise
        raise _disk_error(error.filename or path, reason, path) from error


def disk_error_of(number: int, path: Path) -> DiskError | None:
    """The DiskError for an errno met while writing under `path`; None for other numbers."""
    reason = _DISK_ERRNOS.get(number)
    return None if reason is None else _disk_error(path, reason, path)


def _disk_error(where: str | Path, reason: str, path: Path) -> DiskError:
    free = shutil.disk_usage(_existing(path)).free
    return DiskError(
        f"{where}: cannot write: {reason} ({free / _GIB:.2f} GiB, {free} bytes, are free). Older "
        "checkpoints are intact."
    )


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def checkpoint_name(step: int) -> str:
    """Folder name of a step. Example: 20 -> "step_00000020"."""
    if step < 0:
        raise ValueError(f"a checkpoint's step must be 0 or more, got {step}.")
    return f"step_{step:08d}"


def _step_of(name: str) -> int | None:
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None


def _sync(path: Path) -> None:
    """Flush a file or a folder to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, text: str) -> None:
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


def _seal(folder: Path, step: int) -> None:
    """Sync every file of `folder`, write the manifest and its digest, sync those too."""
    names = _relative_files(folder)
    assert names, f"checkpoint {folder} holds no file"
    for name in names:
        _sync(folder / name)
    files = {
        name: {"sha256": digest, "size": (folder / name).stat().st_size}
        for name, digest in zip(names, _digests(folder, names), strict=True)
    }
    manifest = {"files": files, "format": FORMAT, "step": step}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    _write_synced(folder / MANIFEST, text)
    _write_synced(folder / MANIFEST_DIGEST, _digest_line(text.encode()))
    for parent, _, _ in os.walk(folder):
        _sync(Path(parent))


def _digest_line(manifest: bytes) -> str:
    """The one allowed content of manifest.sha256, which `sha256sum -c` also reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise CorruptCheckpointError(f"{path} is missing.")
    return path.read_bytes()


def _load_manifest(folder: Path) -> dict[str, dict[str, object]]:
    """The manifest's file table, once its digest, format and step are right."""
    raw = _read(folder / MANIFEST)
    if _read(folder / MANIFEST_DIGEST) != _digest_line(raw).encode():
        raise CorruptCheckpointError(
            f"{folder / MANIFEST} does not match its digest in {MANIFEST_DIGEST}."
        )
    manifest = json.loads(raw)
    if manifest["format"] != FORMAT:
        raise CorruptCheckpointError(
            f"{folder / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}."
        )
    if checkpoint_name(manifest["step"]) != folder.name:
        raise CorruptCheckpointError(f"{folder / MANIFEST} is of step {manifest['step']}.")
    files: dict[str, dict[str, object]] = manifest["files"]
    return files


def verify_checkpoint(folder: Path) -> None:
    """Check that `folder` holds exactly the files that were saved, byte for byte.

    Raises:
        CorruptCheckpointError: names the first file that is missing, extra, of another size, of
            another digest, or unreadable.
    """
    try:
        _verify(folder)
    except OSError as error:
        raise CorruptCheckpointError(
            f"{error.filename or folder} cannot be read: {error.strerror}."
        ) from error


def _verify(folder: Path) -> None:
    files = _load_manifest(folder)
    present = _relative_files(folder)
    for name in sorted(files.keys() - set(present)):
        raise CorruptCheckpointError(f"{folder / name} is missing.")
    for name in sorted(set(present) - files.keys()):
        raise CorruptCheckpointError(f"{folder / name} is not in the manifest.")
    for name in present:
        size = (folder / name).stat().st_size
        if size != files[name]["size"]:
            raise CorruptCheckpointError(
                f"{folder / name} has {size} bytes, saved were {files[name]['size']}."
            )
    for name, digest in zip(present, _digests(folder, present), strict=True):
        if digest != files[name]["sha256"]:
            raise CorruptCheckpointError(f"{folder / name} does not match its SHA-256.")


class CheckpointStore:
    """The checkpoints of one run. Only rank 0 calls it; other ranks write into `begin`'s folder.

    Example: `folder = store.begin(20)`, all ranks write files there, barrier, `store.commit(20)`.
    """

    def __init__(self, root: Path, keep: int) -> None:
        """`root` is the run's checkpoints folder; `keep` newest checkpoints stay, 1 or more."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.root = Path(root)
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or will be."""
        return self.root / checkpoint_name(step)

    def begin(self, step: int) -> Path:
        """Make an empty staging folder for `step`, removing leftovers of interrupted saves.

        Raises:
            DiskError: the folder cannot be made.
        """
        staging = self._staging(step)
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._recover()
            for prefix in (_STAGING, _TRASH, _REPLACED):
                for leftover in self.root.glob(f"{prefix}*"):
                    shutil.rmtree(leftover)
            staging.mkdir()
        return staging

    def commit(self, step: int) -> Path:
        """Make the staged checkpoint the newest one, then prune to `keep`; return its folder.

        An older checkpoint is removed only after the new one is complete on disk. Checkpoints of
        later steps belong to an abandoned attempt (or are damaged): they are renamed to
        `abandoned-...`, kept, and never resumed from.

        Raises:
            DiskError: full, read-only or failing disk. The staging folder is removed.
        """
        staging, final = self._staging(step), self.path(step)
        assert staging.is_dir(), f"begin({step}) was not called"
        try:
            with disk_errors(staging):
                _seal(staging, step)
                self._set_aside_later(step)
                self._publish(staging, final)
        except DiskError:
            shutil.rmtree(staging, ignore_errors=True)
            self._recover()
            raise
        with disk_errors(self.root):
            self._point_to(final.name)
            self._prune()
        return final

    def newest_good(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint whose every file verifies; None without one.

        Each damaged one on the way costs one warning that names the checkpoint and the file.
        """
        self._recover()
        for step in reversed(self.steps()):
            try:
                verify_checkpoint(self.path(step))
            except CorruptCheckpointError as error:
                logger.warning("checkpoint %s is damaged, passed over: %s", self.path(step), error)
            else:
                return step, self.path(step)
        return None

    def verify(self, path: Path) -> None:
        """See `verify_checkpoint`."""
        verify_checkpoint(path)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending; they are not verified."""
        if not self.root.is_dir():
            return []
        found = (_step_of(path.name) for path in self.root.iterdir() if path.is_dir())
        return sorted(step for step in found if step is not None)

    def newest_bytes(self) -> int:
        """Bytes of the files of the newest checkpoint; 0 without one. It is not verified."""
        steps = self.steps()
        files = self.path(steps[-1]).rglob("*") if steps else ()
        return sum(file.stat().st_size for file in files if file.is_file())

    def check_space(self, need_bytes: int) -> None:
        """Raise DiskError, naming path, needed and free, unless `need_bytes` fit on the disk."""
        free = shutil.disk_usage(_existing(self.root)).free
        if free < need_bytes:
            raise DiskError(
                f"{self.root}: a checkpoint needs {need_bytes / _GIB:.2f} GiB "
                f"({need_bytes} bytes), {free / _GIB:.2f} GiB ({free} bytes) are free. Free some "
                "space, lower checkpoint.keep, or choose another output_dir."
            )

    def _staging(self, step: int) -> Path:
        return self.root / f"{_STAGING}{checkpoint_name(step)}"

    def _publish(self, staging: Path, final: Path) -> None:
        """Rename the sealed folder into place."""
        if final.exists():
            os.rename(final, self.root / f"{_REPLACED}{final.name}")
        os.rename(staging, final)
        _sync(self.root)

    def _recover(self) -> None:
        """Put back a checkpoint that an interrupted replacement had moved aside."""
        for aside in self.root.glob(f"{_REPLACED}*"):
            final = self.root / aside.name.removeprefix(_REPLACED)
            if not final.exists():
                os.rename(aside, final)

    def _point_to(self, name: str) -> None:
        """Write the LATEST pointer, for people and scripts; resuming looks at the folders."""
        fresh = self.root / f".{LATEST}.new"
        _write_synced(fresh, f"{name}\n")
        os.replace(fresh, self.root / LATEST)
        _sync(self.root)

    def _set_aside_later(self, step: int) -> None:
        """Rename checkpoints of steps after `step`, so that none of them is resumed from."""
        for later in [other for other in self.steps() if other > step]:
            aside = self._free_name(f"{_ABANDONED}{checkpoint_name(later)}")
            os.rename(self.path(later), aside)
            logger.warning("checkpoint of later step %d set aside as %s", later, aside)

    def _prune(self) -> None:
        """Remove all but the `keep` newest."""
        for old in self.steps()[: -self.keep]:
            # Renamed first: a folder named like a checkpoint is never half removed.
            os.rename(self.path(old), self.root / f"{_TRASH}{checkpoint_name(old)}")
        for prefix in (_TRASH, _REPLACED):
            for folder in self.root.glob(f"{prefix}*"):
                shutil.rmtree(folder)
        _sync(self.root)

    def _free_name(self, name: str) -> Path:
        """`name` under the root, with a number where it is taken."""
        path, count = self.root / name, 1
        while path.exists():
            path, count = self.root / f"{name}.{count}", count + 1
        return path
