"""`passk-fast data SET FOLDER`: the prompts of a published set-up as JSONL files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from passk_fast.commands.arguments import take
from passk_fast.commands.evaluation_options import flag_of, given_fields
from passk_fast.config import DataConfig, RunConfig
from passk_fast.config.file import dump_toml, load_config
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.report.records import disk_errors
from passk_fast.tasks import part_of
from passk_fast.tasks.maths_data import write_prompts
from passk_fast.tasks.published import (
    FROM_FILES,
    GENERATED,
    Splits,
    counts,
    generated_splits,
    maths_splits,
)

_ABOUT = {**{name: set_up.about for name, set_up in GENERATED.items()}, **FROM_FILES}
_USAGE = f"""\
passk-fast data SET FOLDER [--key value ...] [--train FILE,...] [--test FILE,...]

  Writes FOLDER/SET_train.jsonl and FOLDER/SET_test.jsonl, for data.train and data.test. No problem
  is in both. Existing files are not overwritten.

{chr(10).join(f"  {name:12}{about}" for name, about in _ABOUT.items())}

  Generated sets take the options that change what is made, such as --data.maze.train-per-size 1000
  or --data.seed 1; maths and math take their files by --train and --test, names parted by commas,
  in the layouts of docs/rewards.md."""


def command(arguments: list[str]) -> ExitCode:
    """Write the files and say what they hold."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return ExitCode.DONE
    train, test = take(arguments, "--train"), take(arguments, "--test")
    if len(arguments) < 2 or any(argument.startswith("-") for argument in arguments[:2]):
        raise ConfigError("usage: passk-fast data SET FOLDER [--key value ...]; see --help.")
    name, place, *overrides = arguments
    if name not in _ABOUT:
        raise ConfigError(f"command line: there is no set {name!r}; known: {', '.join(_ABOUT)}.")
    folder = Path(place)
    files = [folder / f"{name}_{split}.jsonl" for split in ("train", "test")]
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} exists; remove it, or name another folder.")
    if name in GENERATED:
        if train or test:
            raise ConfigError(f"command line: {name} is generated: it takes no --train or --test.")
        config = _config(name, overrides)
        splits = generated_splits(config)
    else:
        config, splits = DataConfig(), _maths(name, train, test, overrides)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, prompts in zip(files, (splits.train, splits.test), strict=True):
        if prompts:
            _write(file, prompts, config)
    if splits.dropped:
        print(f"{splits.dropped} training problems were left out: they are held out too.")
    return ExitCode.DONE


def _config(name: str, overrides: Sequence[str]) -> DataConfig:
    """The set-up's own settings with those of the command line on top."""
    set_up = GENERATED[name]
    for field in given_fields(overrides):
        if not field.startswith(set_up.options):
            raise ConfigError(
                f"command line: {flag_of(field)} has no effect on the set {name!r}; it takes those "
                f"that begin with {', '.join(set_up.options)}."
            )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.toml"
        file.write_text(dump_toml(RunConfig(data=set_up.config)), encoding="utf-8")
        return load_config(file, overrides).data


def _maths(name: str, train: str | None, test: str | None, overrides: Sequence[str]) -> Splits:
    if overrides:
        raise ConfigError(f"command line: {overrides[0]} has no effect on the set {name!r}.")
    if not train:
        raise ConfigError(
            f"command line: {name} is read from local files: name them with --train FILE,... (and "
            "--test FILE,...)."
        )
    return maths_splits(train.split(","), test.split(",") if test else [])


def _write(file: Path, prompts: Sequence[Prompt], config: DataConfig) -> None:
    """The file appears as a whole or not at all."""
    staging = file.with_name(f".{file.name}-{os.getpid()}")
    with disk_errors(file):
        try:
            write_prompts(prompts, staging)
            digest = hashlib.sha256(staging.read_bytes()).hexdigest()
            staging.rename(file)
        finally:
            staging.unlink(missing_ok=True)
    parts = counts(prompts, partial(part_of, config=config))
    words = "" if set(parts) == {""} else ", ".join(f"{n} {part}" for part, n in parts.items())
    shown = f" ({words})" if words else ""
    print(f"{file}: {len(prompts)} prompts{shown}, sha256 {digest[:16]}")
