"""The checkpoint store: which checkpoints there are; it knows nothing of Megatron or torch.

A checkpoint `step_00000020/` is complete or absent: files are written to a staging folder, sealed
(manifest.py) and renamed. Nothing in one is parsed before every digest has matched.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from passk_fast.checkpoint.manifest import (
    CorruptCheckpointError,
    checkpoint_name,
    seal,
    step_of,
    sync,
    verify_checkpoint,
    write_synced,
)
from passk_fast.errors import DiskError

LATEST = "LATEST"

_STAGING, _REPLACED, _TRASH, _ABANDONED = ".staging-", ".replaced-", ".trash-", "abandoned-"
_DISK_ERRNOS = {
    errno.ENOSPC: "the file system is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the device reports an input/output error",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}
_GIB = 2**30

logger = logging.getLogger(__name__)


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


class CheckpointStore:
    """The checkpoints of one run. Only rank 0 calls it; other ranks write into `begin`'s folder.

    Example: `folder = store.begin(20)`, all ranks write files there, barrier, `store.commit(20)`.
    """

    def __init__(self, root: Path, keep: int, keep_every: int = 0) -> None:
        """`root` is the run's checkpoints folder; `keep` newest checkpoints stay, 1 or more, and
        those whose step is a multiple of `keep_every` (0: none)."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.root = Path(root)
        self.keep = keep
        self.keep_every = keep_every

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
                seal(staging, step)
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

    def newest_good(
        self, check: Callable[[Path], None] = verify_checkpoint
    ) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint that `check` lets pass; None without any.

        Each damaged one on the way costs one warning that names the checkpoint and the file.

        Raises:
            CorruptCheckpointError: all are damaged; the message names each of them and a file.
        """
        self._recover()
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                check(self.path(step))
            except CorruptCheckpointError as error:
                damage.append(str(error))
            else:
                for said in damage:
                    logger.warning("a damaged checkpoint is passed over: %s", said)
                return step, self.path(step)
        if damage:
            raise CorruptCheckpointError(
                f"{self.root}: no checkpoint is intact: {' '.join(damage)}"
            )
        return None

    def was_used(self) -> bool:
        """Whether a checkpoint was ever committed here, as far as the folder tells."""
        return (self.root / LATEST).is_file()

    def go_back_to(self, step: int) -> None:
        """Set later checkpoints aside, as `commit` does: `step` is the newest one then."""
        with disk_errors(self.root):
            self._set_aside_later(step)
            self._point_to(self.path(step).name)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending; they are not verified."""
        if not self.root.is_dir():
            return []
        found = (step_of(path) for path in self.root.iterdir() if path.is_dir())
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
        sync(self.root)

    def _recover(self) -> None:
        """Put back a checkpoint that an interrupted replacement had moved aside."""
        for aside in self.root.glob(f"{_REPLACED}*"):
            final = self.root / aside.name.removeprefix(_REPLACED)
            if not final.exists():
                os.rename(aside, final)

    def _point_to(self, name: str) -> None:
        """Write the LATEST pointer, for people and scripts; resuming looks at the folders."""
        fresh = self.root / f".{LATEST}.new"
        write_synced(fresh, f"{name}\n")
        os.replace(fresh, self.root / LATEST)
        sync(self.root)

    def _set_aside_later(self, step: int) -> None:
        """Rename checkpoints of steps after `step`, so that none of them is resumed from."""
        for later in [other for other in self.steps() if other > step]:
            aside = self._free_name(f"{_ABANDONED}{checkpoint_name(later)}")
            os.rename(self.path(later), aside)
            logger.warning("checkpoint of later step %d set aside as %s", later, aside)

    def _prune(self) -> None:
        """Remove all but the `keep` newest and the milestones."""
        for old in self.steps()[: -self.keep]:
            if self.keep_every and old % self.keep_every == 0:
                continue
            # Renamed first: a folder named like a checkpoint is never half removed.
            os.rename(self.path(old), self.root / f"{_TRASH}{checkpoint_name(old)}")
        for prefix in (_TRASH, _REPLACED):
            for folder in self.root.glob(f"{prefix}*"):
                shutil.rmtree(folder)
        sync(self.root)

    def _free_name(self, name: str) -> Path:
        """`name` under the root, with a number where it is taken."""
        path, count = self.root / name, 1
        while path.exists():
            path, count = self.root / f"{name}.{count}", count + 1
        return path
