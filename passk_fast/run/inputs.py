"""What a run was started from, by content: its data rows and the files of its model folder.

`inputs.json` in the run folder and every checkpoint hold the digests; a run is resumed with the
same content alone, wherever it lies. A file that has not been touched is not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypedDict

from passk_fast.config import RunConfig
from passk_fast.config.file import INPUTS
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.process_group import from_rank_0

_PIECE = 8 << 20
"""Bytes that one thread reads and hashes at a time."""
_THREADS = 16
_FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
_REMEDY = "Put the old content back, or start another run with another --output-dir."


class Rows(TypedDict):
    """A data set."""

    count: int
    in_order: str
    """Digest of the rows in their order."""
    in_any_order: str
    """Digest that rows in another order have too."""


class Inputs(TypedDict):
    """The content of a run's inputs."""

    train: Rows
    test: Rows
    model: dict[str, str]
    """File of the model folder -> digest: weights (of the policy at the start, and so of the
    reference policy), config.json and tokenizer."""


def settled_inputs(
    config: RunConfig,
    rank: int,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    model_dir: Path,
    checkpoint: Path | None,
) -> Inputs:
    """The content of a run's inputs, written into its folder. Rank 0 reads them; a collective.

    `checkpoint` is the verified one that is resumed from.

    Raises:
        DataError: its data were others.
        ConfigError: its model folder was another; the message names the files.
    """
    return from_rank_0(lambda: _settle(config, prompts, held_out, model_dir, checkpoint))


def _settle(
    config: RunConfig,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    model_dir: Path,
    checkpoint: Path | None,
) -> Inputs:
    record = Path(config.output_dir) / INPUTS
    recorded = json.loads(record.read_text()) if record.is_file() else {}
    model, seen = folder_digests(model_dir, recorded.get("seen", {}))
    found = Inputs(train=row_digests(prompts), test=row_digests(held_out), model=model)
    if checkpoint:
        state = json.loads((checkpoint / "state.json").read_text())
        before = state.get("inputs", recorded)  # checkpoints of earlier versions say nothing
        if before:
            refuse_other_inputs(before, found, config, model_dir)
    record.write_text(json.dumps({**found, "seen": seen}, indent=1) + "\n")
    return found


def refuse_other_inputs(before: Inputs, now: Inputs, config: RunConfig, model_dir: Path) -> None:
    """Raise where a run would go on with another content; DataError and ConfigError as in
    `settled_inputs`."""
    paths: tuple[tuple[Literal["train", "test"], str], ...]
    paths = (("train", config.data.train), ("test", config.data.test))
    for name, path in paths:
        old, new = before[name], now[name]
        if old == new:
            continue
        where = f"{path}: data.{name}" if path else f"data.{name}: the generated data"
        if old["in_any_order"] == new["in_any_order"]:
            what = f"holds its {new['count']} rows in another order than when this run began"
        else:
            what = f"holds other rows than when this run began ({old['count']} then, "
            what += f"{new['count']} now)"
        raise DataError(f"{where} {what}. {_REMEDY}")
    names = sorted(before["model"].keys() | now["model"].keys())
    other = [name for name in names if before["model"].get(name) != now["model"].get(name)]
    if other:
        raise ConfigError(
            f"model.path: {model_dir} has another content than when this run began, in "
            f"{', '.join(other)}. The policy, its reference (loss.kl_coef) and its tokens must "
            f"stay what they were. {_REMEDY}"
        )


def row_digests(prompts: Sequence[Prompt]) -> Rows:
    """Of every row: text, answer, task, id and further columns."""
    ordered, total, count = hashlib.sha256(), 0, 0
    for prompt in prompts:
        content = [prompt.text, prompt.answer, prompt.task, prompt.columns]
        body = json.dumps(content, sort_keys=True, default=str)
        ordered.update(
            hashlib.sha256(f"{prompt.id}\n{body}".encode("utf-8", "surrogatepass")).digest()
        )
        name = "" if prompt.id == str(count) else prompt.id  # the number of a row is no name
        in_any_order = hashlib.sha256(f"{name}\n{body}".encode("utf-8", "surrogatepass")).digest()
        total = (total + int.from_bytes(in_any_order)) % (1 << 256)
        count += 1
    return Rows(count=count, in_order=ordered.hexdigest(), in_any_order=f"{total:064x}")


Seen = dict[str, list[object]]
"""Path of a file -> [size, mtime_ns, ctime_ns, digest] when it was read."""


def folder_digests(folder: Path, seen: Seen) -> tuple[dict[str, str], Seen]:
    """(digest of each file that a model and a tokenizer are read from, what to remember).

    A file with the size and the times of `seen` is not read.
    """
    digests: dict[str, str] = {}
    remember: Seen = {}
    for file in _model_files(folder):
        status = file.stat()
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        path = str(file.resolve())
        known = seen.get(path, [])
        digest = str(known[3]) if known[:3] == key else file_digest(file)
        digests[file.name] = digest
        remember[path] = [*key, digest]
    return digests, remember


def _model_files(folder: Path) -> Iterator[Path]:
    found = {file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()}
    yield from sorted(found)


def file_digest(file: Path) -> str:
    """SHA-256 over the SHA-256 of each 8 MiB, which threads compute side by side."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        offsets = range(0, os.fstat(descriptor).st_size, _PIECE)
        with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
            pieces = pool.map(
                lambda at: hashlib.sha256(os.pread(descriptor, _PIECE, at)).digest(), offsets
            )
            return hashlib.sha256(b"".join(pieces)).hexdigest()
    finally:
        os.close(descriptor)
